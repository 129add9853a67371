"""The trial of the methods on language: its prompts, what is measured, and the report."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from markscheme.schema import Rollout
from markscheme_train.demo.sample import Sample
from train.tiny import tiny_model, tiny_tokenizer
from training import language
from training.language import (
    ARMS,
    FULL,
    QUICK,
    TEMPERATURE,
    beside,
    log_probs,
    planned,
    report,
    with_demonstration,
)
from training.short_prompts import BRIEFLY, ShortPrompt, judge_of, load_short_prompts

CONSOLE = Console(quiet=True)
PROMPT = ShortPrompt(
    "p",
    f"Name a fruit without commas. {BRIEFLY}",
    (
        ("punctuation:no_comma", {}),
        ("length_constraints:number_words", {"relation": "less than", "num_words": 20}),
    ),
)


def sample(text: str, *, truncated: bool = False) -> Sample:
    return Sample(text=text, truncated=truncated, tokens=len(text.split()))


def test_every_short_prompt_has_graded_criteria_and_ends_with_the_request_to_be_brief() -> None:
    prompts = load_short_prompts()
    assert len(prompts) > FULL.trained + FULL.held_out
    assert all(prompt.text.endswith(BRIEFLY) for prompt in prompts)
    assert all(len(prompt.criteria) >= 2 for prompt in prompts)


def test_the_prompts_own_instructions_weigh_more_than_being_brief() -> None:
    judge = judge_of([PROMPT])
    both, long, commas = (
        judge(PROMPT.text, Rollout(id="r", text=text))
        for text in ("An apple.", "An apple " * 20, "An apple, a pear.")
    )
    assert (both.right, both.share) == (True, 1)
    assert (long.right, long.share) == (False, pytest.approx(2 / 3))
    assert (commas.right, commas.share) == (False, pytest.approx(1 / 3))


def test_an_empty_answer_meets_no_criterion() -> None:
    judged = judge_of([PROMPT])(PROMPT.text, Rollout(id="r", text=" "))
    assert not judged.right
    assert judged.share == 0


def prompts_named(names: str) -> list[ShortPrompt]:
    return [ShortPrompt(name, f"{name}. {PROMPT.text}", PROMPT.instructions) for name in names]


RIGHT, WRONG = sample("An apple."), sample("An apple, a pear.")
CUT = sample("An apple", truncated=True)
SIZES = dataclasses.replace(QUICK, tried=2, again=14, trained=1, held_out=1, compared=1)


def test_prompts_are_kept_if_hardly_an_answer_is_cut_off_and_some_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(language, "load_short_prompts", lambda: prompts_named("abcdef"))
    drawn = {
        "a": [CUT, RIGHT],
        "b": [RIGHT] * 16,
        "c": [RIGHT, RIGHT, WRONG, CUT] + [RIGHT] * 12,
        "d": [WRONG] * 16,
        "e": [WRONG, RIGHT] * 8,
        "f": [WRONG, RIGHT, CUT, CUT] + [RIGHT] * 12,
    }
    chosen = language.chosen_of(drawn, SIZES)
    assert chosen == {
        "candidates": 6,
        "cut_of_candidates": pytest.approx(1 / 12, abs=1e-4),
        "answers": 16,
        "kept": {"c": 0.0625, "e": 0},
        "trained": ["c"],
        "held_out": ["e"],
        "demonstrations": {"c": "An apple."},
    }
    with pytest.raises(SystemExit, match="only 1 of 2 prompts suit"):
        language.chosen_of({name: drawn[name] for name in "ce"} | {"c": [RIGHT] * 16}, SIZES)


def test_prompts_are_chosen_once_and_only_those_of_short_answers_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answers(
        model: Any, tokenizer: Any, texts: list[str], samples: int, _seed: int
    ) -> list[list[Sample]]:
        asked.append([text[0] for text in texts])
        return [[CUT if text[0] == "b" else RIGHT, *[WRONG] * (samples - 1)] for text in texts]

    monkeypatch.setattr(language, "load_student", lambda _: (tiny_model(), None))
    monkeypatch.setattr(language, "load_short_prompts", lambda: prompts_named("abc"))
    monkeypatch.setattr(language, "answers", answers)
    for _ in range(2):
        language.choose(tmp_path, tmp_path, SIZES)
    assert asked == [["a", "b", "c"], ["a", "c"]]
    assert list(language.choice(tmp_path)["kept"]) == ["a", "c"]


def test_seed_0_of_every_arm_comes_first() -> None:
    runs = planned(ARMS, range(2), [1, 2], FULL)
    first = runs[: len(ARMS)]
    assert [(run.arm.name, run.seed) for run in first] == [(arm.name, 0) for arm in ARMS]
    assert [run.learning_rate for run in first] == [arm.rates[0] for arm in ARMS]
    assert len({run.key for run in runs}) == len(runs) == 4 * (len(ARMS) - 1) + 1


@pytest.fixture
def tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def test_log_probabilities_are_those_of_a_plain_pass_with_the_end(tokenizer: Any) -> None:
    model = tiny_model().eval()
    found = log_probs(model, tokenizer, "w1 w2", [sample("w3"), sample("w4 w5 w6", truncated=True)])
    for row, said in zip(found, ([5 + 1, 1], [7, 8, 9]), strict=True):
        ids = torch.tensor([[4, 5, *said]])
        logits = model(ids).logits[0, 1:-1].div(TEMPERATURE).log_softmax(-1)
        want = logits.gather(-1, torch.tensor(said).unsqueeze(-1)).squeeze(-1)
        assert row[: len(said)].tolist() == pytest.approx(want.tolist(), abs=1e-5)
        assert row[len(said) :].isnan().all()


def test_the_self_teacher_reads_the_demonstration_and_its_student_does_not(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    asked: list[list[str]] = []

    def answers(model: Any, tokenizer: Any, prompts: list[str], *_: Any) -> list[list[Sample]]:
        asked.append(prompts)
        right = sample("w3" if len(asked) == 1 else "w3, w4")
        return [[right, sample("w3 , w4,")] for _ in prompts]

    monkeypatch.setattr(language, "answers", answers)
    measured = beside(model, model, tokenizer, {PROMPT: "w3"}, samples=2)
    assert asked == [[PROMPT.text], [with_demonstration(PROMPT.text, "w3")]]
    assert (measured["alone"], measured["shown"]) == (0.5, 0.0)
    assert isinstance(measured["gain_right"], float)
    assert isinstance(measured["gain_wrong"], float)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("arm", ["untrained", "grpo-rating", "sdpo", "srpo-rubric"])
def test_a_run_is_measured_and_its_self_teacher_where_it_has_one(
    arm: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"trained": ["a", "b"], "held_out": ["c"], "demonstrations": {"a": "w3"}}
    (tmp_path / "prompts.json").write_text(json.dumps(chosen))
    monkeypatch.setattr(language, "load_student", lambda _: (tiny_model(), tokenizer))
    monkeypatch.setattr(language, "load_short_prompts", lambda: prompts_named("abc"))
    [run] = planned([each for each in ARMS if each.name == arm], [0], [1], QUICK)
    sizes = dataclasses.replace(QUICK, samples=2, beside=2)
    done = language.carried_out(run, tmp_path, directory=tmp_path, sizes=sizes)
    assert len(done["curve"]) == run.steps == (0 if arm == "untrained" else 2)
    assert done["after"].keys() == {"trained", "held_out"}
    assert ("teacher" in done) == (arm != "grpo-rating")


def result(arm: str, seed: int, right: float) -> dict[str, Any]:
    [rate] = [each.rates[0] for each in ARMS if each.name == arm]
    return {
        "task": "ifeval-short",
        "arm": arm,
        "learning_rate": rate,
        "seed": seed,
        "steps": 2,
        "curve": [0.5, right],
        "after": ABILITIES | {"held_out": ABILITIES["held_out"] | {"right": right}},
        "teacher": TEACHER,
        "metrics": {},
    }


ABILITIES = {
    part: {"right": 0.5, "met": 0.75, "cut": 0.0, "tokens": 20.0}
    for part in ("trained", "held_out")
}
TEACHER = {"alone": 0.5, "shown": 0.25, "gain_right": None, "gain_wrong": -0.5}


def test_the_report_says_how_many_seeds_each_figure_has(tmp_path: Path) -> None:
    finished = [result("ropd", 0, 0.75), result("ropd", 1, 0.5), result("grpo-rating", 1, 0.25)]
    known = {
        "candidates": 9,
        "cut_of_candidates": 0.125,
        "answers": 16,
        "kept": {"a": 0.0, "b": 0.0625},
        "trained": ["a"],
        "held_out": ["b"],
    }
    report(finished, known, tmp_path, CONSOLE)
    (data,) = tmp_path.glob("methods-language-*.json")
    assert json.loads(data.read_text())["runs"] == finished
    text = data.with_suffix(".md").read_text()
    assert "2 are kept: at most one of 16 answers hit it" in text
    assert "| ropd | 3e-05 | 2 | 0.500 ± 0.000 | 0.625 ± 0.125 |" in text
    assert "| grpo-rating | 3e-05 | 1 | 0.500 | 0.250 |" in text
    assert "| ropd | grpo-rating | +0.250 | +0.000 | +0.250 | 1 |" in text
