"""A trajectory as text for the self-teacher: whose each part is, and what is shortened first."""

from typing import Any

from markscheme_train.demonstration import LEFT_OUT, fitting, readable

CALL: dict[str, Any] = {
    "role": "assistant",
    "tool_calls": [
        {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Orléans"}}}
    ],
}
TRAJECTORY = [
    CALL | {"content": "I look it up."},
    {"role": "tool", "name": "look_up", "content": "first " + "x" * 3000 + " last"},
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "content": "About 117,000.", "reasoning_content": "a secret thought"},
]


def test_each_part_says_whose_it_is_and_thoughts_are_not_shown() -> None:
    text = readable(TRAJECTORY)
    assert [line for line in text.splitlines() if line.startswith("[")] == [
        "[Assistant]",
        "[Call of look_up]",
        "[Result of look_up]",
        "[User]",
        "[Assistant]",
    ]
    assert '{"city": "Orléans"}' in text
    assert text.endswith("[Assistant]\nAbout 117,000.")
    assert "secret" not in text


def test_thoughts_are_cut_as_the_service_cuts_them() -> None:
    said = [
        CALL | {"content": "<think>a secret</think>I look it up."},
        {"role": "user", "content": "<think>mine</think>Well?"},
        {"role": "assistant", "content": "<think>cut off"},
    ]
    text = readable(said)
    assert "secret" not in text
    assert "cut off" not in text
    assert "<think>mine</think>Well?" in text
    assert "a secret" in readable(said, thinking="keep")
    opened = [{"role": "assistant", "content": "a secret</think>\n\nBlue."}]
    assert readable(opened, thinking="strip") == "Blue."
    # A parser took the thought out: what remains is all answer.
    parsed = [{"role": "assistant", "content": "Blue.", "reasoning_content": "a secret"}]
    assert readable(parsed, thinking="strip") == "Blue."
    assert fitting(opened, 100, len, thinking="strip") == "Blue."


def test_a_lone_message_is_its_text() -> None:
    assert readable(TRAJECTORY[-1:]) == "About 117,000."


def test_arguments_as_the_models_own_words_and_calls_without_text() -> None:
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{oops"}}],
    }
    assert (
        readable([call, {"role": "tool", "content": "no"}]) == "[Call of f]\n{oops\n\n[Result]\nno"
    )


def test_results_give_way_in_their_middle_before_anything_that_was_said() -> None:
    text = fitting(TRAJECTORY, 500, len)
    assert len(text) <= 500
    assert LEFT_OUT in text
    assert "first x" in text
    assert "x last" in text
    assert "I look it up." in text
    assert text.endswith("About 117,000.")


def test_a_trajectory_that_fits_is_whole_and_one_that_cannot_is_as_short_as_it_gets() -> None:
    assert fitting(TRAJECTORY, 10_000, len) == readable(TRAJECTORY)
    assert len(fitting(TRAJECTORY, 10, len)) < 500
