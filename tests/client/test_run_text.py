from markscheme.run_text import finding_counts, run_url, sparkline
from markscheme.schema import FindingCounts


def test_a_sparkline_has_the_scale_of_rewards_and_a_dot_where_nothing_is_known() -> None:
    assert sparkline([0.0, 0.5, None, 1.0]) == "▁▅·█"
    assert sparkline([0.44, 0.46]) == "▄▄"
    assert sparkline([-1.0, 0.0, 1.0]) == "▁▅█"
    assert sparkline([]) == ""


def test_a_long_sparkline_is_drawn_by_means_of_what_is_known() -> None:
    assert sparkline([0.0, 1.0, None, 0.9, None, None], width=3) == "▅█·"


def test_the_address_of_a_run_escapes_its_id() -> None:
    assert run_url("http://h:1", "team a/b#2") == "http://h:1/pages/runs/team%20a%2Fb%232"
    assert run_url("http://h:1", "..") == "http://h:1/pages/runs/~.."
    assert run_url("https://me:secret@h/base", "r") == "https://h/base/pages/runs/r"


def test_counts_name_only_levels_that_occur() -> None:
    assert finding_counts(FindingCounts(alarm=2)) == "!2"
    assert finding_counts(FindingCounts(alarm=1, watch=3)) == "!1 △3"
    assert finding_counts(FindingCounts()) == ""
    assert finding_counts(None) == ""
