"""``markscheme score``: score the rollouts of a JSONL file."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from markscheme.cli.output import (
    Url,
    connect,
    fail,
    messages,
    progress_bar,
    reported_errors,
)
from markscheme.client import DEFAULT_URL
from markscheme.jsonl import WHITESPACE, parse, read_lines
from markscheme.jsonl_rows import non_null_columns, read_rows
from markscheme.schema import Group, GroupScore, Run
from markscheme.vocabulary import (
    TRANSIENT_REASONS,
    Clamp,
    ReusePolicy,
    ReuseScope,
    Thinking,
    VerifyMode,
    describe_reasons,
)

GROUPS_PER_REQUEST = 32


@dataclass(slots=True)
class ScoreReport:
    """What one run of the command did, counted as answers arrive."""

    groups: int = 0
    rollouts: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    induced_again: int = 0
    """Rubrics that were induced although the prompt had an earlier version."""

    def add(self, scores: Sequence[GroupScore]) -> None:
        """Count one answer of the service."""
        for group in scores:
            self.groups += 1
            self.rollouts += len(group.rollouts)
            self.reasons.update(r.reason.value for r in group.rollouts if r.reason is not None)
            if group.rubric is not None:
                self.origins[group.rubric.origin] += 1
                self.induced_again += group.rubric.origin == "induced" and group.rubric.version > 1

    def lines(self, target: Path) -> list[str]:
        """Return the summary: counts, where rubrics came from, and why rewards are null."""
        lines = [
            f"{self.groups} groups scored into {target}; "
            f"{self.reasons.total()} of {self.rollouts} rollouts unscored"
        ]
        if self.origins:
            origins = ", ".join(f"{n} {origin}" for origin, n in sorted(self.origins.items()))
            lines.append(f"rubrics: {origins}")
        if self.induced_again:
            lines.append(
                f"{self.induced_again} prompts had a rubric already and got a new one: with "
                "--reuse if_fresh a rubric is replaced when its last groups got equal or "
                "near-perfect rewards, or when it is worn out. --reuse frozen keeps what is there."
            )
        if self.reasons:
            lines += [*describe_reasons(self.reasons), self._what_next()]
        return lines

    def _what_next(self) -> str:
        """Return when it helps to run the command again."""
        lasting = sorted(name for name in self.reasons if name not in TRANSIENT_REASONS)
        first = f", after what is said of {' and '.join(lasting)} is done" if lasting else ""
        return f"Run the command again to ask for them again{first}."


def score(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSONL, one group a line: {"prompt", "rollouts": [text, …]} '
            'and optionally "id", "teacher_responses", "rubric_id".'
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: FILE.scored.jsonl."),
    ] = None,
    url: Url = DEFAULT_URL,
    run: Annotated[
        str | None,
        typer.Option(help="Name of the run that usage and lineage list these scores under."),
    ] = None,
    step: Annotated[int, typer.Option(min=0, help="Training step of the run.")] = 0,
    reuse: Annotated[
        ReusePolicy,
        typer.Option(
            help="always_new induces a rubric for every group; if_fresh keeps one while it still "
            "separates rollouts; frozen never induces."
        ),
    ] = "if_fresh",
    verify: Annotated[
        VerifyMode,
        typer.Option(
            help="rollout judges each rollout alone; group judges all of a group in one call."
        ),
    ] = "rollout",
    thinking: Annotated[
        Thinking,
        typer.Option(
            help="What the judge sees of a rollout. auto drops a thought that the rollout opens "
            "itself; strip drops one that the chat template opened; keep drops nothing."
        ),
    ] = "auto",
    clamp: Annotated[
        Clamp,
        typer.Option(
            help="What becomes of a reward below 0: zero raises it to 0, signed keeps it."
        ),
    ] = "zero",
    reuse_scope: Annotated[
        ReuseScope | None,
        typer.Option(
            help="Whose rubrics may be reused: own, shared (also those shared with your team) or "
            "organisation. Default: your team's setting; without one, own where a group has "
            "teacher responses, else organisation."
        ),
    ] = None,
) -> None:
    """Score the rollouts of a JSONL file.

    Writes one scored group a line. A reward that is not known is null, and the summary says why;
    the exit status is then 0 all the same.

    Run it again to go on: finished groups are kept, groups with null rewards are asked for again.
    """
    console = messages()
    target = output or file.with_suffix(".scored.jsonl")
    report = ScoreReport()
    try:
        with reported_errors():
            groups = read_groups(file)
            known = read_scored(target)
            todo = [group for group in groups if not known.get(group.id, False)]
            if known:
                again = sum(group.id in known for group in todo)
                console.print(
                    f"{sum(known.values())} groups are in {target} already"
                    + (f"; {again} with null rewards are asked for again" if again else ""),
                    soft_wrap=True,
                )
            _repair_last_line(target)
            with (
                connect(url) as client,
                progress_bar("scoring", console) as progress,
                target.open("a", encoding="utf-8") as out,
            ):
                bar = progress.add_task("groups", total=len(todo))
                for start in range(0, len(todo), GROUPS_PER_REQUEST):
                    batch = client.score(
                        todo[start : start + GROUPS_PER_REQUEST],
                        reuse=reuse,
                        verify=verify,
                        thinking=thinking,
                        clamp=clamp,
                        reuse_scope=reuse_scope,
                        run=Run(id=run, step=step) if run else None,
                        on_group=lambda _: progress.advance(bar),
                    )
                    # On disk before the next request: an interruption loses no paid verdict.
                    out.writelines(group.model_dump_json() + "\n" for group in batch.groups)
                    out.flush()
                    report.add(batch.groups)
            drop_superseded(target)
    except KeyboardInterrupt:
        fail(f"stopped; finished groups are in {target}. Run the command again to go on.", 130)
    console.print("\n".join(report.lines(target)), soft_wrap=True)


def read_groups(file: Path) -> list[Group]:
    """Read the groups of a JSONL file; a rollout may be a string or an object.

    Groups without an id are named ``line-N``, rollouts without one ``rN``. Raises ``ValueError``
    that names the line at fault, and ``OSError``.
    """
    groups = [
        group if named else group.model_copy(update={"id": f"line-{number}"})
        for number, (named, group) in read_rows(file, _parse_group)
    ]
    if not groups:
        raise ValueError(f"{file} holds no groups")
    return groups


def read_scored(target: Path) -> dict[str, bool]:
    """Read which groups a scored file holds: id to whether every reward is known.

    The last line of an id counts. Raises ``ValueError`` that names a line which is no scored group.
    """
    if not target.exists():
        return {}
    return dict(row for _, row in read_rows(target, _parse_scored))


def drop_superseded(target: Path) -> None:
    """Rewrite a scored file with only the last line of each group, in the order of first lines."""
    lines = [line for line in read_lines(target) if line.strip(WHITESPACE)]
    newest = {parse(line)["id"]: line for line in lines}
    if len(newest) == len(lines):
        return
    partial = target.with_name(f"{target.name}.partial")
    partial.write_text("".join(f"{line}\n" for line in newest.values()), encoding="utf-8")
    partial.replace(target)


def _parse_group(row: Any) -> tuple[bool, Group]:
    """Return whether the row names its group, and the group."""
    columns = non_null_columns(row)
    rollouts = columns.get("rollouts")
    if isinstance(rollouts, list):
        columns["rollouts"] = [_parse_rollout(i, rollout) for i, rollout in enumerate(rollouts)]
    return "id" in columns, Group.model_validate({"id": "unnamed", **columns})


def _parse_rollout(index: int, row: Any) -> Any:
    if isinstance(row, str):
        return {"id": f"r{index}", "text": row}
    return {"id": f"r{index}", **row} if isinstance(row, dict) else row


def _parse_scored(row: Any) -> tuple[str, bool]:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise ValueError("not a scored group")
    rollouts = row.get("rollouts")
    known = (
        isinstance(rollouts, list)
        and bool(rollouts)
        and all(
            isinstance(rollout, dict) and rollout.get("reward") is not None for rollout in rollouts
        )
    )
    return row["id"], known


def _repair_last_line(target: Path) -> None:
    """End the last line of a file that an editor left without a line feed."""
    if not target.exists() or not target.stat().st_size:
        return
    with target.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.write(b"\n")
