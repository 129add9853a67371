"""The result of a demo run: the numbers of `summary.json` and the table at its end."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from markscheme_train.demo.evaluate import Evaluation, PromptResult
from markscheme_train.step_log import StepRecord

NOTES = """\
SmolLM2-135M-Instruct, trained by ROPD. Rubrics were induced by rules from each prompt, a response \
of GPT-4 and samples of the student; no language model judged anything. Before and after are fresh \
samples under the same rubric of each prompt. The IFEval pass rate is the benchmark's own verdict \
on them; no reward ever saw it. ± is one standard error over samples, the prompts taken as given. \
Words count as non-words if neither the tokenizer has them nor a prompt or a teacher's response."""


@dataclass(frozen=True, slots=True)
class Change:
    """The same prompts measured before and after training, under the same rubrics."""

    before: Evaluation
    after: Evaluation

    def rows(self) -> list[tuple[str, str, str]]:
        """Return name, before, after: the rows of the table."""
        both = (self.before, self.after)
        return [
            _row("reward", *(f"{e.reward:.2f} ± {e.reward_error:.2f}" for e in both)),
            _row(
                "official IFEval pass rate",
                *(f"{e.ifeval:.2f} ± {e.ifeval_error:.2f}" for e in both),
            ),
            _row("mean length, tokens", *(f"{e.tokens:.1f}" for e in both)),
            _row("share of non-words", *(f"{e.non_words:.1%}" for e in both)),
        ]


def _row(name: str, before: str, after: str) -> tuple[str, str, str]:
    return name, before, after


@dataclass(frozen=True, slots=True)
class DemoResult:
    """A finished demo. `seconds` does not count fetching the model."""

    trained: Change
    held_out: Change
    records: list[StepRecord]
    seconds: float

    @property
    def unscored(self) -> int:
        """Rollouts and samples without a reward."""
        evaluations = (
            self.trained.before,
            self.trained.after,
            self.held_out.before,
            self.held_out.after,
        )
        return sum(r.unscored for r in self.records) + sum(e.unscored for e in evaluations)

    def summary(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        trained, held_out = self.trained, self.held_out
        return {
            "reward_before": trained.before.reward,
            "reward_after": trained.after.reward,
            "heldout_before": held_out.before.reward,
            "heldout_after": held_out.after.reward,
            "ifeval_before": trained.before.ifeval,
            "ifeval_after": trained.after.ifeval,
            "ifeval_heldout_before": held_out.before.ifeval,
            "ifeval_heldout_after": held_out.after.ifeval,
            "reward_before_se": trained.before.reward_error,
            "reward_after_se": trained.after.reward_error,
            "heldout_before_se": held_out.before.reward_error,
            "heldout_after_se": held_out.after.reward_error,
            "tokens_before": trained.before.tokens,
            "tokens_after": trained.after.tokens,
            "non_words_before": trained.before.non_words,
            "non_words_after": trained.after.non_words,
            "steps": len(self.records),
            "unscored": self.unscored,
            "seconds": round(self.seconds, 1),
        }

    def facts(self) -> dict[str, str]:
        """Return both measurements by name, to be shown with the run."""
        return {
            f"{name}, {split} prompts": f"{before} → {after}"
            for split, change in (("trained", self.trained), ("held-out", self.held_out))
            for name, before, after in change.rows()
        }

    def examples(self) -> list[tuple[PromptResult, PromptResult]]:
        """Return before and after for the first training prompt of each kind."""
        seen: dict[str, tuple[PromptResult, PromptResult]] = {}
        for pair in zip(self.trained.before.results, self.trained.after.results, strict=True):
            seen.setdefault(pair[0].prompt.kind, pair)
        return list(seen.values())


def print_result(result: DemoResult, console: Console) -> None:
    """Print the table of both splits, examples, and what the figures mean."""
    for title, change in (
        ("trained prompts", result.trained),
        ("held-out prompts", result.held_out),
    ):
        table = Table(title=f"{len(change.before.results)} {title}", title_justify="left")
        table.add_column("")
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        for row in change.rows():
            table.add_row(*row)
        console.print(table)
    for before, after in result.examples():
        table = Table(
            title=Text(before.prompt.prompt), title_justify="left", expand=True, show_lines=True
        )
        table.add_column(f"before · {_verdict(before)}", ratio=1)
        table.add_column(f"after · {_verdict(after)}", ratio=1)
        table.add_row(Text(before.samples[0].text), Text(after.samples[0].text))
        console.print(table)
    console.print(NOTES, highlight=False)
    console.print(
        f"{len(result.records)} steps, {result.unscored} unscored, {result.seconds:.0f} s",
        highlight=False,
    )


def _verdict(result: PromptResult) -> str:
    reward = result.rewards[0]
    shown = "unknown" if reward is None else f"{reward:.2f}"
    return f"reward {shown} · IFEval: {'follows' if result.follows[0] else 'does not follow'}"
