"""The live view: what a step says is on it, and criterion text is never read as markup."""

import dataclasses
import io

from rich.console import Console
from rich.segment import Segment

from markscheme.schema import Finding, GroupFilter
from markscheme_train.progress import LiveTable, print_end
from markscheme_train.reward import CriterionRate
from markscheme_train.step_log import EvaluationRecord, StepRecord


def record(reward: float | None, step: int = 3, **metrics: float) -> StepRecord:
    rate = CriterionRate(
        group="g",
        rubric="rub_1",
        criterion="c1",
        text="Has [bold]no[/bold] comma",
        points=5,
        category="task_fulfilment",
        met=6,
        judged=8,
    )
    return StepRecord(
        step=step,
        steps=20,
        reward=reward,
        rollouts=16,
        unscored=2,
        reasons={"timeout": 2},
        origins={"induced": 1, "reused": 1},
        criteria=[rate],
        rollout_s=9.1,
        scoring_s=0.2,
        teacher_s=0.0,
        update_s=8.5,
        judge_calls=14,
        judge_tokens=9000,
        metrics=metrics,
    )


def drawn(*, terminal: bool, reward: float | None = 0.5, **metrics: float) -> str:
    output = io.StringIO()
    with LiveTable(
        Console(file=output, force_terminal=terminal, width=120, color_system=None), title="t"
    ) as live:
        live.show(record(reward, **metrics))
    return output.getvalue()


def test_a_terminal_sees_the_step_and_its_criteria() -> None:
    text = drawn(terminal=True)
    for part in (
        "0.50",
        "2/16",
        "1 induced 1 reused",
        "9.1",
        "8.5",
        "Has [bold]no[/bold] comma",
        "0.75",
        "3/20",
        "14",
    ):
        assert part in text
    assert "to teacher" not in text


def test_the_share_that_goes_to_the_self_teacher_is_shown_where_there_is_one() -> None:
    text = drawn(terminal=True, **{"distillation/routed_share": 0.375})
    assert "to teacher" in text
    assert "38%" in text


def test_elsewhere_a_step_is_one_line() -> None:
    assert drawn(terminal=False).splitlines() == [
        "step 3/20  reward 0.50  unscored 2/16  judge calls 14  "
        "rollout 9.1 s  scoring 0.2 s  update 8.5 s"
    ]
    routed = drawn(terminal=False, **{"distillation/routed_share": 0.375})
    assert "judge calls 14  to teacher 38%  rollout" in routed


FINDING = Finding(
    kind="inverted",
    level="alarm",
    sentence="A criterion is inverted: “Ends with [b]an offer[/b]”. Students meet it in 98 % of "
    "rollouts, teachers in 41 % of their responses, since step 560.",
    since_step=560,
    criterion="k",
    values={},
    groups=GroupFilter(),
)


def test_the_view_fits_a_small_terminal_with_trend_teacher_and_findings() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, height=24, color_system=None)
    rates = [dataclasses.replace(record(0.5).criteria[0], criterion=f"c{n}") for n in range(30)]
    with LiveTable(console, title="training") as live:
        live.show_findings([FINDING, FINDING])
        for step in range(1, 21):
            one = record(step / 20, step, **{"distillation/routed_share": 0.4})
            live.show(dataclasses.replace(one, criteria=rates, teacher=0.85))
        lines = Segment.split_lines(console.render(live._live.renderable))  # type: ignore[union-attr]
        text = ["".join(segment.text for segment in line).rstrip() for line in lines]
    assert len(text) <= 24
    assert max(map(len, text)) <= 80
    assert text[0].startswith("reward ▁▁▂")
    assert text[0].endswith("1.00  teacher 0.85")
    shown = [line for line in text if "9.1 + 0.2 + 0.0 + 8.5" in line]
    assert len(shown) == 8
    assert "1 induced 1 reused" in shown[-1]
    [finding] = [line for line in text if line.startswith("!2")]
    assert "“Ends with [b]an offer[/b]”" in finding
    assert "20/20" in text[-1]


def test_the_end_prints_findings_and_the_address() -> None:
    output = io.StringIO()
    print_end(Console(file=output, width=80), [FINDING] * 12, "http://h/pages/runs/r")
    lines = output.getvalue().splitlines()
    assert lines[0] == f"! {FINDING.sentence}"
    assert lines[10:] == ["2 more findings are on the run's page", "run: http://h/pages/runs/r"]


def test_an_evaluation_is_one_line_that_stays() -> None:
    output = io.StringIO()
    evaluation = EvaluationRecord(
        step=40,
        reward=0.625,
        best=True,
        rollouts=80,
        unscored=3,
        reasons={"timeout": 3},
        criteria=[],
        mean_length=211.4,
        clipped_ratio=0.0,
        seconds=31.2,
        judge_calls=77,
        judge_tokens=9000,
    )
    with LiveTable(Console(file=output, width=120), title="t") as live:
        live.show_evaluation(evaluation)
        live.show_evaluation(dataclasses.replace(evaluation, reward=None, best=False))
    assert output.getvalue().splitlines() == [
        "evaluation after step 40  reward 0.62 (best)  unscored 3/80  length 211  judge calls 77  "
        "31.2 s",
        "evaluation after step 40  reward –  unscored 3/80  length 211  judge calls 77  31.2 s",
    ]


def test_an_unknown_reward_is_no_number() -> None:
    assert "reward –" in drawn(terminal=False, reward=None)
