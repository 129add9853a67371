"""What the self-teacher reads, and what gives way when it is too long."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from markscheme_train.reprompt import CLOSING, Prompt, build_teacher_prompt, reprompt

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]


def words(prompt: Prompt) -> Sequence[int]:
    """Tokenize with one token per word."""
    text = prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)
    return [hash(word) for word in text.split()]


def cut(text: str, keep: int) -> str:
    return " ".join(text.split()[:keep])


def test_a_conversation_keeps_its_messages_and_ends_with_the_instruction() -> None:
    made = reprompt(CHAT, "Blue.", ["It says why."])
    assert made[0] == CHAT[0]
    content = made[-1]["content"]  # type: ignore[index]
    assert content.startswith("Name a colour.\n\n")
    assert content.endswith(CLOSING)
    assert content.index("Blue.") < content.index("- It says why.")
    assert CHAT[1]["content"] == "Name a colour."


def test_plain_text_stays_plain() -> None:
    made = reprompt("Name a colour.", None, ["It says why."])
    assert isinstance(made, str)
    assert made.startswith("Name a colour.")
    assert made.rstrip().endswith(CLOSING)
    assert "found to be good" not in made


def test_feedback_gives_way_before_the_demonstration() -> None:
    feedback = [f"line {i} of what was missed" for i in range(5)]
    whole = words(reprompt(CHAT, "Blue it is.", feedback))
    assert (
        build_teacher_prompt(words, cut, CHAT, "Blue it is.", feedback, max_tokens=len(whole))
        == whole
    )
    fewer = build_teacher_prompt(
        words, cut, CHAT, "Blue it is.", feedback, max_tokens=len(whole) - 1
    )
    assert fewer == words(reprompt(CHAT, "Blue it is.", feedback[:4]))


def test_what_cannot_be_told_is_not_told() -> None:
    assert build_teacher_prompt(words, cut, CHAT, "Blue.", [], max_tokens=8) is None
    assert build_teacher_prompt(words, cut, CHAT, None, ["a line"], max_tokens=12) is None


@given(st.integers(1, 120), st.integers(0, 6), st.integers(10, 200))
def test_it_never_exceeds_its_bound_nor_loses_the_instruction(
    length: int, lines: int, max_tokens: int
) -> None:
    demonstration = " ".join(f"w{i}" for i in range(length))
    ids = build_teacher_prompt(
        words, cut, CHAT, demonstration, [f"miss {i}" for i in range(lines)], max_tokens=max_tokens
    )
    if ids is not None:
        assert len(ids) <= max_tokens
        assert list(ids[-len(CLOSING.split()) :]) == [hash(word) for word in CLOSING.split()]
        assert hash("w0") in ids
