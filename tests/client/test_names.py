"""Names in addresses."""

import httpx
from hypothesis import given
from hypothesis import strategies as st

from markscheme.names import from_path_segment, path_segment

NAMES = st.text(max_size=20) | st.text("~./%2E", max_size=6)


@given(NAMES)
def test_a_name_comes_back_from_its_segment(name: str) -> None:
    assert from_path_segment(path_segment(name)) == name


@given(NAMES, NAMES)
def test_two_names_have_two_segments(one: str, other: str) -> None:
    assert (one == other) == (path_segment(one) == path_segment(other))


@given(NAMES.filter(bool))
def test_no_name_leads_to_another_folder(name: str) -> None:
    segment = path_segment(name)
    address = httpx.URL("http://h/pages/runs/x").join(f"{segment}/steps.csv")
    assert address.raw_path.decode() == f"/pages/runs/{segment}/steps.csv"
