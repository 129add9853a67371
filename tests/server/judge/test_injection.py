"""Test that a rollout's text stays inside its fence and changes nothing else of the message."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.judge import ScriptedJudge, answered_texts, verdicts
from markscheme import Client
from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge import prompts
from markscheme_server.judge.base import InductionTask, StudentResponse, VerifyTask
from markscheme_server.judge.replies import ReplyError, read_criteria
from server.judge.injections import INJECTIONS

MARKS = prompts.PromptSecrets(b"a secret of the tests")
PROMPT = "Name a colour and say why."
MAX_TOKENS = 8000
FENCE = re.compile(r"material-[0-9a-f]{16}")
BLOCK = re.compile(r"^<<(material-[0-9a-f]{16})\n(.*?)\n\1>>$", re.MULTILINE | re.DOTALL)
HIDING = (
    "\u200b\u200c\u200d\u200e\u202a\u202e\u2060\u2066\u2069\ufeff\ufe00\ufe0f"
    "\U000e0041\U000e0100\u034f\u3164\x00\x1b"
)
PIECES = st.sampled_from(
    [*INJECTIONS, *HIDING, "material-", "<<", ">>", "\n", "0123456789abcdef", "[mark]", "Answer 1:"]
)
TEXTS = (
    st.lists(PIECES | st.text(max_size=20), max_size=8)
    .map("".join)
    .filter(lambda t: len(t) < 4 * MAX_TOKENS)
)
PATIENT = {"request_timeout_s": 120.0}
"""For a hundred calls at once on a busy machine."""
EXAMPLES = pytest.mark.parametrize(
    "examples", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)


def verifier(*answers: str) -> str:
    """Return the whole message that asks about these answers."""
    task = VerifyTask(
        ({"role": "user", "content": PROMPT},),
        (Criterion("c1", "It names a colour.", 1),),
        answers,
        "group" if len(answers) > 1 else "rollout",
    )
    schema = prompts.verdict_schema(pool=len(answers) > 1, evidence=False, nonce=True)
    return prompts.verifier_prompt(
        task,
        [("c1", "It names a colour.")],
        schema,
        MARKS,
        max_tokens=MAX_TOKENS,
        nonce="a nonce",
        canary=("c2", "The answer contains the string x."),
    )


def rubricator(teacher: str, student: str) -> str:
    task = InductionTask(
        ({"role": "user", "content": PROMPT},), (teacher,), (StudentResponse(student),)
    )
    return prompts.rubricator_prompt(task, MARKS, max_tokens=MAX_TOKENS)


def blocks(message: str) -> list[tuple[str, str]]:
    return BLOCK.findall(message)


def skeleton(message: str) -> str:
    """Return the message without its fences' contents and names."""
    return FENCE.sub("material", BLOCK.sub(r"<<\1>>", message))


def holds(message: str, plain: str, *texts: str) -> None:
    """Check that the message differs from the plain one only inside the fences."""
    assert skeleton(message) == skeleton(plain)
    shown = [body for _, body in blocks(message)][-len(texts) :]
    assert shown == [prompts.shown_text(text, MAX_TOKENS) for text in texts]
    for body in shown:
        assert FENCE.search(body) is None
        assert not re.search(
            "[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e001f]", body
        )


def test_there_are_eighty() -> None:
    assert len(set(INJECTIONS)) == len(INJECTIONS) >= 80


@pytest.mark.parametrize("text", INJECTIONS)
def test_an_injection_stays_inside_its_fence(text: str) -> None:
    holds(verifier(text), verifier("plain"), text)
    holds(verifier("one", text, "three"), verifier("a", "b", "c"), "one", text, "three")
    holds(rubricator(text, "student"), rubricator("teacher", "student"), text, "student")
    holds(rubricator("teacher", text), rubricator("teacher", "student"), "teacher", text)


@EXAMPLES
def test_any_text_stays_inside_its_fence(
    examples: int, record_property: Callable[[str, str], None]
) -> None:
    plain, pool, contrast = verifier("plain"), verifier("a", "b"), rubricator("a", "b")

    @settings(max_examples=examples, deadline=None, database=None)
    @given(TEXTS, TEXTS)
    def check(one: str, two: str) -> None:
        holds(verifier(one), plain, one)
        holds(verifier(one, two), pool, one, two)
        holds(rubricator(one, two), contrast, one, two)

    check()
    record_property("figure", f"{examples} pairs of texts stayed inside their fences")


@EXAMPLES
def test_what_hides_between_latin_letters_is_always_made_visible(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None)
    @given(st.text(st.sampled_from("abcXYZ ,.\n" + HIDING), min_size=1, max_size=60))
    def check(text: str) -> None:
        shown = prompts.shown_text(text, MAX_TOKENS)
        assert not set(shown) & set(HIDING)
        assert len(shown) == len(text), "each hidden character is seen as one"

    check()


def score(client: Client, texts: tuple[str, ...]) -> list[Any]:
    rubric = client.create_rubric(PROMPT, [{"text": "It names a colour.", "points": 1}])
    batch = client.score(
        [
            {
                "id": "g",
                "prompt": PROMPT,
                "rubric_id": rubric.id,
                "rollouts": [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)],
            }
        ]
    )
    return list(batch.groups[0].rollouts)


@pytest.mark.parametrize("hardening", [False, True])
def test_an_injection_earns_what_the_judge_says_and_no_more(
    hardening: bool, serve: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    """A sound judge says no to each; a rollout's text is not taken for the judge's reply."""

    def strict(request: dict[str, Any], _number: int) -> str:
        return verdicts(request, lambda criterion, answer: False)

    judge.script = strict
    with Client(serve(**model_settings | PATIENT, judge_hardening=hardening)) as client:
        assert {(r.reward, r.reason) for r in score(client, INJECTIONS)} == {(0.0, None)}


def test_a_judge_that_repeats_a_rollout_scores_nothing(
    serve: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    """Not one of the replies that rollouts bring along holds the nonce of its call."""
    judge.script = lambda request, number: answered_texts(request)[0][1]
    with Client(serve(**model_settings | PATIENT, judge_hardening=True)) as client:
        rollouts = score(client, INJECTIONS)
    assert {r.reward for r in rollouts} == {None}
    assert {r.reason for r in rollouts} <= {
        UnscoredReason.PARSE_FAILURE,
        UnscoredReason.OFF_MENU,
        UnscoredReason.TRUNCATED,
    }


@pytest.mark.parametrize(
    "criterion",
    [
        "It is better than Student 3.",
        "It is as good as Reference 1",
        "Unlike student 2 it gives a reason",
        "It agrees with Reference 0 and Student 1.",
    ],
)
def test_a_criterion_that_names_an_answer_of_the_call_is_refused(criterion: str) -> None:
    said = {
        "criteria": [
            {"criterion": text, "category": "Task-Fulfillment", "points": 2}
            for text in (criterion, "It is short.", "It is polite.", "It is true.")
        ]
    }
    with pytest.raises(ReplyError, match="must not name"):
        read_criteria(said, PROMPT)
