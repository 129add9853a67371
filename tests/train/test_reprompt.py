"""What the self-teacher reads, and what gives way when it is too long."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from markscheme_train.reprompt import (
    CLOSING,
    DEMONSTRATION,
    FEEDBACK,
    Prompt,
    build_teacher_prompt,
    reprompt,
)

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


ADDED = "\n\n".join([DEMONSTRATION.format("Blue."), FEEDBACK.format("- one\n- two"), CLOSING])


def test_every_kind_of_prompt_to_the_letter() -> None:
    told = ("Blue.", ["one", "two"])
    assert reprompt("Name a colour.", *told) == f"Name a colour.\n\n{ADDED}\n\n"
    before = [*CHAT, {"role": "assistant", "content": "Red."}]
    asked = {"role": "user", "content": "Another."}
    assert reprompt([*before, asked], *told) == [
        *before,
        {"role": "user", "content": f"Another.\n\n{ADDED}"},
    ]
    # A tool's result is not the student's task: the request follows in a message of its own.
    result = {"role": "tool", "content": "blue: #0000ff"}
    assert reprompt([*before, result], *told) == [
        *before,
        result,
        {"role": "user", "content": ADDED},
    ]
    assert reprompt([{"role": "user"}], *told) == [
        {"role": "user", "content": f"\n\n{ADDED}"},
    ]


def shortened(available: int, joint: int = 0) -> Sequence[int] | None:
    """Return what is made of a long demonstration, with tokens at its joint to the prompt."""

    def tokens(prompt: Prompt) -> Sequence[int]:
        ids = words(prompt)
        return [*ids, *[0] * joint] if hash("w0") in ids else ids

    demonstration = " ".join(f"w{i}" for i in range(50))
    room = len(words(reprompt(CHAT, "")))
    return build_teacher_prompt(tokens, cut, CHAT, demonstration, [], max_tokens=room + available)


def kept(count: int) -> Sequence[int]:
    return words(reprompt(CHAT, " ".join(f"w{i}" for i in range(count))))


def test_a_demonstration_is_cut_to_its_room() -> None:
    assert shortened(10) == kept(10)
    assert shortened(1) == kept(1)
    assert shortened(0) is None


def test_a_demonstration_with_tokens_at_its_joint_is_cut_until_it_fits() -> None:
    # An eighth of its room less at each try, at least a token.
    assert shortened(10, joint=3) == [*kept(7), 0, 0, 0]
    assert shortened(16, joint=3) == [*kept(12), 0, 0, 0]
    # Less than half of its room is no demonstration any more.
    assert shortened(10, joint=4) == [*kept(6), 0, 0, 0, 0]
    assert shortened(10, joint=5) is None


def test_feedback_alone_is_dropped_line_by_line() -> None:
    def made(max_tokens: int, demonstration: str | None = None) -> Sequence[int] | None:
        return build_teacher_prompt(
            words, cut, CHAT, demonstration, ["one", "two"], max_tokens=max_tokens
        )

    one, both = words(reprompt(CHAT, None, ["one"])), words(reprompt(CHAT, None, ["one", "two"]))
    assert made(len(both)) == both
    assert made(len(both) - 1) == one
    assert made(len(one) - 1) is None
    alone = words(reprompt(CHAT, "Blue."))
    assert made(len(alone), "Blue.") == alone


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
