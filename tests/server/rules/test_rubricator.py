"""Test the rubric: constraints first, easier_checks, topic, gate; and what never becomes one."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markscheme import schema
from markscheme.vocabulary import UnscoredReason
from markscheme_server import wire
from markscheme_server.domain.hashing import criterion_key
from markscheme_server.domain.reward import reward
from markscheme_server.domain.rubric import Criterion, maximum_score
from markscheme_server.domain.verdict import Verdict
from markscheme_server.judge.base import InductionTask, JudgeFailure, StudentResponse
from markscheme_server.rules.checks import run_check
from markscheme_server.rules.rubricator import MAX_CRITERIA, TOPIC_SHARE, induce_criteria

PROMPT = "Write a short note about the old harbour at night. Do not use any commas."
TEACHER = (
    "The old harbour sleeps under the night sky and the boats creak as they wait for the morning."
)
STUDENTS = (
    "A cat sat on the mat, and it was, I think, very happy about that.",
    "The town is quiet now.",
)


def induce(
    prompt: str = PROMPT,
    teachers: tuple[str, ...] = (TEACHER,),
    students: tuple[str, ...] = STUDENTS,
    truncated: bool = False,
) -> tuple[Criterion, ...]:
    return induce_criteria(
        InductionTask(
            ({"role": "user", "content": prompt},),
            teachers,
            tuple(StudentResponse(text, truncated) for text in students),
        )
    )


def earned(criteria: tuple[Criterion, ...], text: str) -> float:
    verdicts = {c.id: Verdict(c.id, run_check(c.check or {}, text).met) for c in criteria}
    value = reward(criteria, verdicts)
    assert value is not None
    return value


def asked(criterion: Criterion) -> dict[str, Any]:
    """Return the check inside the gate."""
    assert criterion.check is not None
    return dict(criterion.check["checks"][-1])


def test_a_constraint_is_split_into_rungs_and_names_its_source() -> None:
    strict, *rest = induce()
    assert asked(strict) == {"kind": "count", "of": "commas", "max": 0}
    assert [c.points for c in induce()[:3]] == [3, 1, 1]
    assert strict.source == "Do not use any commas."
    assert all(c.source == strict.source for c in rest[:2])
    assert strict.text.startswith("The response has no commas. ")


def test_ids_run_from_c1_and_the_rubric_is_valid() -> None:
    criteria = induce()
    assert [c.id for c in criteria] == [f"c{n}" for n in range(1, len(criteria) + 1)]
    schema.RubricCreate(prompt="p", criteria=wire.from_criteria(criteria))


def test_a_constraint_stays_when_the_teacher_misses_it() -> None:
    criteria = induce(
        teachers=("Boats, nets, ropes, and gulls are what the old harbour has at night.",)
    )
    assert asked(criteria[0]) == {"kind": "count", "of": "commas", "max": 0}


def test_without_teacher_and_with_one_student_the_prompt_suffices() -> None:
    criteria = induce(teachers=(), students=("Nothing much.",))
    assert asked(criteria[0])["of"] == "commas"
    assert earned(criteria, TEACHER) == 1.0


def test_no_constraint_is_no_rubric_however_different_the_responses_are() -> None:
    with pytest.raises(JudgeFailure) as failure:
        induce("Tell me about the old harbour.")
    assert failure.value.reason is UnscoredReason.NO_RUBRIC


def test_the_same_task_gives_the_same_rubric() -> None:
    assert induce() == induce()


def test_system_messages_are_read_and_the_assistants_are_not() -> None:
    messages = (
        {"role": "system", "content": "Use no commas."},
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "I will answer in all caps."},
    )
    criteria = induce_criteria(InductionTask(messages, (), (StudentResponse("hi"),)))
    assert {asked(c)["kind"] for c in criteria if c.source} == {"count"}


@pytest.mark.parametrize(
    "cheat",
    [
        "",
        "ok",
        "ok ok ok ok",
        PROMPT,
        PROMPT + " " + PROMPT,
        "good " * 60,
        "boat " * 200,
        "🌦 🌦 🌦 🌦 🌦 🌦",
    ],
)
def test_a_cheat_earns_nothing(cheat: str) -> None:
    criteria = induce()
    assert earned(criteria, cheat) == 0.0
    assert earned(criteria, TEACHER) == 1.0


def test_invented_words_earn_the_stated_constraint_and_nothing_else() -> None:
    criteria = induce()
    stated = next(c for c in criteria if asked(c) == {"kind": "count", "of": "commas", "max": 0})
    assert (
        earned(criteria, "xoxox lemmy klaxwak xoxox zzyx")
        == stated.points / maximum_score(criteria)
        <= 0.5
    )


def test_the_gate_yields_to_what_the_prompt_asks_for() -> None:
    options = induce('Is it open? Answer with one of these: "Yes.", "No."', teachers=("Yes.",))
    assert earned(options, "Yes.") == 1.0
    assert earned(options, 'Is it open? Answer with one of these: "Yes.", "No."') == 0.0
    repeat = induce(
        "Copy my question at the top of your answer before replying. How do bees make honey?",
        teachers=("How do bees make honey? They gather nectar and fan it dry in the comb.",),
    )
    assert (
        earned(repeat, "How do bees make honey? They gather nectar and fan it dry in the comb.")
        == 1.0
    )
    assert (
        earned(
            repeat,
            "Copy my question at the top of your answer before replying. How do bees make honey?",
        )
        == 0.0
    )
    german = induce(
        "Describe the sea. Write your answer in German.", ("Das Meer ist weit und tief und blau.",)
    )
    assert earned(german, "Das Meer ist groß und die Wellen sind hoch.") == 1.0


def test_contrast_is_tied_to_the_prompt_and_capped() -> None:
    prompt = (
        "Write about the lighthouse keeper and the storm with the sailors and the island. "
        'Do not use any commas. Use at least 10 words. Include the word "lamp".'
    )
    teacher = (
        "The lighthouse keeper lit the lamp for the sailors "
        "when the storm came over the island that evening."
    )
    criteria = induce(
        prompt, (teacher,), ("Something else is said in this place today and nothing more.",)
    )
    words = [c for c in criteria if c.category == "observable_quality"]
    assert {asked(c)["texts"][0] for c in words} <= {
        "lighthouse",
        "keeper",
        "storm",
        "sailors",
        "island",
    }
    assert 1 <= len(words) <= 4
    tied = sum(c.points for c in criteria if c.source is None)
    assert tied <= TOPIC_SHARE * maximum_score(criteria)
    assert all("teacher" not in c.text.lower() for c in criteria)


def subject(criteria: tuple[Criterion, ...]) -> list[str]:
    """Return the words of which a response must take up one; empty where any subject will do."""
    return next(
        (asked(c)["texts"] for c in criteria if asked(c).get("match") == "any"),
        [],
    )


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Describe autumn without commas.", ["autumn"]),
        ("Please write a short poem about whales. Use no commas.", ["whales"]),
        ("Compose a haiku describing winter and use at least 10 words.", ["winter"]),
        ("Describe the harbour in all lower case letters.", ["harbour"]),
        ("Summarize the causes of the war in exactly 3 sentences.", ["causes"]),
        ("Tell me about harbours in English. Use no commas.", ["harbours"]),
        ("Answer in capital letters: what is the capital of France?", ["france"]),
        ("Write 2 paragraphs about bees, separated by the markdown divider ***.", ["bees"]),
        ("Write a poem. Use no commas.", []),
    ],
)
def test_the_subject_has_no_word_of_instruction(prompt: str, words: list[str]) -> None:
    assert subject(induce(prompt, teachers=(), students=("Hm.",))) == words


def test_a_response_about_something_else_does_not_earn_the_subject_by_a_word_of_instruction() -> (
    None
):
    criteria = induce("Describe autumn without commas.", teachers=(), students=("Hm.",))
    dog = "My dog has eaten nothing but commas today and he is rather happy to describe the words"
    assert earned(criteria, dog) < 1.0
    assert earned(criteria, "Autumn paints the quiet woods in copper and gold this year") == 1.0


def test_another_prompts_teacher_gives_no_contrast() -> None:
    other = induce(
        teachers=("Bake the bread until the crust is brown and let it cool on a rack for an hour.",)
    )
    assert [c for c in other if c.category == "observable_quality"] == []


def test_truncated_rollouts_do_not_vote_on_what_comes_later() -> None:
    prompt = (
        'Write about the lighthouse. Include the word "lamp". Use no commas. Use at most 90 words.'
    )
    teacher = (
        "On the coast there is a tall white tower that many people know "
        "and it is called the lighthouse by all."
    )
    students = ("On the coast there is a",)
    ended = induce(prompt, (teacher,), students)
    cut = induce(prompt, (teacher,), students, truncated=True)
    assert "observable_quality" in {c.category for c in ended}
    assert "observable_quality" not in {c.category for c in cut}


def test_what_truncated_rollouts_cannot_reach_weighs_little() -> None:
    prompt = 'Write about tea. Use at least 300 words. Use no commas. End with "Good night."'
    ended, cut = (induce(prompt, truncated=truncated) for truncated in (False, True))

    def strict(criteria: tuple[Criterion, ...], kind: str) -> int:
        return next(c.points for c in criteria if asked(c)["kind"] == kind)

    assert (strict(ended, "min_words"), strict(cut, "min_words")) == (3, 1)
    assert (strict(ended, "ends_with"), strict(cut, "ends_with")) == (4, 1)
    assert (strict(ended, "count"), strict(cut, "count")) == (3, 3)


def test_a_crowded_prompt_keeps_to_the_most_criteria() -> None:
    prompt = " ".join(f'Use the word "w{n}" at least {n + 2} times.' for n in range(20))
    criteria = induce(prompt)
    assert len(criteria) == MAX_CRITERIA
    assert {c.points for c in criteria} == {4}


PIECES = [
    "Use no commas. ",
    "Answer in all caps. ",
    "Write 40 words or more. ",
    '"',
    "tea ",
    "\n",
    "Say 'leaf' twice. ",
    'End with "Bye." ',
    "in French ",
    "*** between parts ",
    "ß",
    "5 ",
]


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join),
    st.lists(st.text(min_size=1, max_size=40), max_size=2),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_every_rubric_fits_the_wire(prompt: str, teachers: list[str], truncated: bool) -> None:
    criteria = induce(
        f"Describe tea without commas. {prompt}", tuple(teachers), truncated=truncated
    )
    assert 1 <= len(criteria) <= MAX_CRITERIA
    for c in criteria:
        schema.Criterion.model_validate(dataclasses.asdict(c))


def test_a_fork_of_what_was_induced_has_criteria_of_the_same_keys() -> None:
    criteria = induce('Describe a tree. Include the word "leaf". Answer in English.')
    assert any(asked(c)["kind"] == "contains" for c in criteria)
    sent_back = wire.to_criteria(wire.from_criteria(criteria))
    assert [criterion_key(c) for c in sent_back] == [criterion_key(c) for c in criteria]
