"""Evidence in a response: found as the judge quoted it, and cut without losing a letter."""

from hypothesis import given
from hypothesis import strategies as st

from markscheme.schema import GroupVerdict
from markscheme_server.pages import evidence


def verdict(name: str, quotation: str | None, *, is_quotation: bool = True) -> GroupVerdict:
    return GroupVerdict(
        criterion_id=name,
        met=True,
        applicable=True,
        evidence=quotation,
        evidence_is_quotation=is_quotation,
        rationale=None,
        second_judge_met=None,
    )


def test_case_and_white_space_are_ignored() -> None:
    assert evidence.locate("the WINDOW is 30 days", "So the window\n is  30 days.") == [(3, 26)]


def test_parts_around_an_ellipsis_are_found_in_order() -> None:
    assert evidence.locate("one … three", "one two three") == [(0, 3), (8, 13)]
    assert evidence.locate("three … one", "one two three") == []


def test_evidence_that_overlaps_is_marked_for_both() -> None:
    passage = evidence.mark("one two three", [verdict("c1", "one two"), verdict("c2", "two three")])
    assert [(p.text, p.criteria, p.ends) for p in passage.shown] == [
        ("one ", ("c1",), ()),
        ("two", ("c1", "c2"), ("c1",)),
        (" three", ("c2",), ("c2",)),
    ]


def test_a_quotation_that_is_not_there_is_listed() -> None:
    passage = evidence.mark("one", [verdict("c1", "two"), verdict("c2", "4", is_quotation=False)])
    assert [v.criterion_id for v in passage.missing] == ["c1"]


def test_a_long_response_is_folded() -> None:
    text = "word " * 40_000
    passage = evidence.mark(text, [])
    assert len("".join(p.text for p in passage.shown)) == evidence.FOLDED
    assert "".join(p.text for p in [*passage.shown, *passage.folded]) == text


@given(st.text(max_size=80), st.lists(st.text(min_size=1, max_size=12), max_size=5))
def test_no_letter_is_lost(text: str, quotations: list[str]) -> None:
    verdicts = [verdict(f"c{i}", quotation) for i, quotation in enumerate(quotations)]
    passage = evidence.mark(text, verdicts)
    assert "".join(piece.text for piece in passage.shown) == text
