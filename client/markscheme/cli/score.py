"""``markscheme score``: score rollouts that are kept in files."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from markscheme.cli.output import (
    DATA_HELP,
    PromptColumn,
    RubricColumn,
    TeacherColumn,
    Url,
    ViewOption,
    connect,
    fail,
    messages,
    print_error,
    progress_bar,
    reported_errors,
    warn,
)
from markscheme.client import DEFAULT_URL
from markscheme.data import Columns, Records, Row, RowError, RowReader, open_source
from markscheme.errors import InvalidRequest, NotFound
from markscheme.jsonl import CHUNK_BYTES, WHITESPACE, parse
from markscheme.jsonl_rows import read_rows
from markscheme.schema import MAX_ROLLOUTS, Group, GroupScore, Run, ScoreBatch
from markscheme.vocabulary import (
    TRANSIENT_REASONS,
    Clamp,
    ReusePolicy,
    ReuseScope,
    Thinking,
    VerifyMode,
    View,
    describe_reasons,
)

GROUPS_PER_REQUEST = 32
UNSCORED = 3
"""Exit status when all was asked for and some rewards are null."""


@dataclass(slots=True)
class ScoreReport:
    """What one run of the command did, counted as answers arrive."""

    groups: int = 0
    rollouts: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    induced_again: int = 0
    """Rubrics that were induced although the prompt had an earlier version."""
    refused: int = 0
    """Groups that the service did not take, such as those that name an unknown rubric."""

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
            + (f"; {self.refused} groups refused" if self.refused else "")
        ]
        if self.origins:
            origins = ", ".join(f"{n} {origin}" for origin, n in sorted(self.origins.items()))
            lines.append(f"rubrics: {origins}")
        if self.induced_again:
            lines.append(
                f"{self.induced_again} prompts had a rubric already and got a new one: with "
                "--reuse if_fresh a rubric is replaced when its last groups got equal or "
                "near-perfect rewards, or when it has served its maximum number of groups. "
                "--reuse frozen keeps what is there."
            )
        if self.reasons:
            lines += [*describe_reasons(self.reasons), self._what_next()]
        return lines

    def _what_next(self) -> str:
        """Return when it helps to run the command again."""
        lasting = sorted(name for name in self.reasons if name not in TRANSIENT_REASONS)
        first = f"; before that, do what is said of {' and '.join(lasting)}" if lasting else ""
        return f"Run the command again to ask for them again{first}."


def score(
    data: Annotated[
        str,
        typer.Argument(
            help=f"{DATA_HELP} One group a row. Columns: prompt, rollouts (a list of texts or "
            "trajectories) and optionally id, teacher_responses, rubric_id."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write. Default: DATA.scored.jsonl beside the data."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    run: Annotated[
        str | None,
        typer.Option(help="Name of the run that usage and lineage list these scores under."),
    ] = None,
    step: Annotated[int, typer.Option(min=0, help="Training step of the run.")] = 0,
    rubric: Annotated[
        str | None,
        typer.Option(help="Id of the rubric for every group whose row names none."),
    ] = None,
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
    view: ViewOption = None,
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
    prompt_column: PromptColumn = None,
    teacher_column: TeacherColumn = None,
    rubric_column: RubricColumn = None,
) -> None:
    """Score rollouts.

    Writes one scored group a line. A reward that is not known is null, and the summary says why.

    Run it again to continue: finished groups are kept. Groups with null rewards are scored again,
    and so are groups scored with another --rubric, --verify, --thinking, --view or --clamp; give
    -o to keep both.

    Exit status: 0 every reward is known, 3 some are null, 1 failed, 130 interrupted.
    """
    console = messages()
    target = output or scored_file(data)
    report = ScoreReport()
    try:
        with reported_errors():
            groups = GroupRows(data, Columns(prompt_column, teacher_column, rubric=rubric_column))
            options = ScoreOptions(rubric, verify, thinking, view, clamp)
            _repair_last_line(target)
            known = read_scored(target)
            todo = groups.check(known, options)
            if known:
                console.print(todo.describe(target), soft_wrap=True)
            with (
                connect(url) as client,
                progress_bar("scoring", console) as progress,
                target.open("a", encoding="utf-8") as out,
            ):
                bar = progress.add_task("groups", total=len(todo.names))
                ask = partial(
                    client.score,
                    reuse=reuse,
                    verify=verify,
                    thinking=thinking,
                    view=view,
                    clamp=clamp,
                    reuse_scope=reuse_scope,
                    run=Run(id=run, step=step) if run else None,
                    on_group=lambda _: progress.advance(bar),
                )
                for window in _requests(g for g in groups if g.id in todo.names):
                    scores, refused = _score(ask, [_with_rubric(g, rubric) for g in window])
                    # On disk before the next request: an interruption loses no paid verdict.
                    options_of = {group.id: options.of(group) for group in window}
                    out.writelines(_line(group, options_of[group.id]) for group in scores)
                    out.flush()
                    report.add(scores)
                    report.refused += len(refused)
                    for message in refused:
                        print_error(message)
            drop_superseded(target)
    except KeyboardInterrupt:
        fail(f"stopped; finished groups are in {target}. Run the command again to go on.", 130)
    console.print("\n".join(report.lines(target)), soft_wrap=True)
    if report.reasons or report.refused:
        raise typer.Exit(UNSCORED)


def _score(
    ask: Callable[[Sequence[Group]], ScoreBatch], groups: Sequence[Group]
) -> tuple[list[GroupScore], list[str]]:
    """Score groups in one request; if it is refused, find the groups that are at fault.

    Returns the scores, and a message for each group that was refused. Raises `MarkschemeError`,
    also if every group is refused: then the groups are not to blame.
    """
    try:
        return list(ask(groups).groups), []
    except (InvalidRequest, NotFound) as error:
        if len(groups) == 1:
            raise
        scores: list[GroupScore] = []
        refused: list[str] = []
        for group in groups:
            try:
                scores += ask([group]).groups
            except (InvalidRequest, NotFound) as own:
                refused.append(f"group {group.id}: {own}")
        if not scores:
            raise error
        return scores, refused


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Options that decide a reward, given the rubric; see the command."""

    rubric: str | None = None
    verify: VerifyMode = "rollout"
    thinking: Thinking = "auto"
    view: View | None = None
    clamp: Clamp = "zero"

    def of(self, group: Group) -> dict[str, str]:
        """Return those that a group is scored with, without defaults."""
        own = replace(self, rubric=None) if group.rubric_id is not None else self
        default = ScoreOptions()
        return {
            name: value for name, value in asdict(own).items() if value != getattr(default, name)
        }


@dataclass(frozen=True, slots=True)
class ScoredLine:
    """A group of a scored file: whether every reward is known, and the options it had."""

    is_known: bool
    options: Mapping[str, str]


@dataclass(slots=True)
class Todo:
    """Names of the groups to ask for, and how many of them were scored before."""

    names: set[str] = field(default_factory=set)
    finished: int = 0
    unknown: int = 0
    other_options: int = 0

    def describe(self, target: Path) -> str:
        """Return what is done with the groups that are there already."""
        said = f"{self.finished} groups are in {target} already"
        if self.unknown:
            said += f"; {self.unknown} with null rewards are asked for again"
        if self.other_options:
            said += (
                f"; {self.other_options} were scored with other options and are scored again; to "
                "keep both, write to another file with -o"
            )
        return said


def _line(score: GroupScore, options: Mapping[str, str]) -> str:
    """Return a line of the file: the scored group, and options that are not the default."""
    if not options:
        return score.model_dump_json() + "\n"
    return json.dumps(score.model_dump(mode="json") | {"options": options}) + "\n"


class GroupRows:
    """The groups of a source, read anew at each iteration.

    Groups without an id are named by their row (``line-3``, ``row-3``), rollouts without one
    ``rN``.
    """

    def __init__(self, source: str | Path, columns: Columns | None = None) -> None:
        reader = RowReader(_parse_group, list(Group.model_fields), columns, warn)
        self._records = Records(open_source(source), reader)

    def __iter__(self) -> Iterator[Group]:
        """Yield the groups. Raises ``SourceError``."""
        return (_named(row, record) for row, record in self._records.with_rows())

    def check(self, known: Mapping[str, ScoredLine], options: ScoreOptions) -> Todo:
        """Read every row once, and return which groups to ask for.

        Args:
            known: Groups that were scored before, by id.
            options: What they are to be scored with.

        Raises:
            SourceError: A row cannot be used, two groups have the same id, or there is none.
        """
        places: dict[str, str] = {}
        todo = Todo()

        def visit(row: Row, record: tuple[bool, Group]) -> None:
            group = _named(row, record)
            name = group.id
            if name in places:
                raise RowError(f"{row.place}: the id {name!r} is that of {places[name]} already")
            places[name] = row.place
            line = known.get(name)
            if line is not None and line.is_known and line.options == options.of(group):
                todo.finished += 1
                return
            todo.names.add(name)
            if line is not None:
                todo.other_options += line.is_known
                todo.unknown += not line.is_known

        self._records.check(visit)
        return todo


def _named(row: Row, record: tuple[bool, Group]) -> Group:
    named, group = record
    return group if named else group.model_copy(update={"id": row.name})


def read_groups(source: str | Path) -> list[Group]:
    """Read all groups of a source; see ``GroupRows``. Raises ``ValueError`` and ``OSError``."""
    groups = GroupRows(source)
    groups.check({}, ScoreOptions())
    return list(groups)


def scored_file(data: str) -> Path:
    """Return where scores go by default: beside a file or folder, else in the working directory."""
    path = Path(data)
    if path.is_dir():
        path = path.resolve()
        return path.with_name(f"{path.name}.scored.jsonl")
    if path.exists():
        return path.with_suffix(".scored.jsonl")
    return Path(re.sub(r"[^\w.-]+", "-", data).strip("-") + ".scored.jsonl")


def read_scored(target: Path) -> dict[str, ScoredLine]:
    """Read which groups a scored file holds, by id.

    The last line of an id counts. Raises ``ValueError`` that names a line which is no scored group.
    """
    if not target.exists():
        return {}
    return dict(row for _, row in read_rows(target, _parse_scored))


def drop_superseded(target: Path) -> None:
    """Rewrite a scored file with only the last line of each group, in the order of first lines."""
    newest: dict[str, tuple[int, int]] = {}  # id: offset and length of the line
    offset = lines = 0
    with target.open("rb") as file:
        for line in file:  # of bytes: a line ends at a line feed and nowhere else
            if line.strip(WHITESPACE.encode()):
                # A key that is assigned again keeps its place, which is that of the first line.
                newest[parse(line.decode("utf-8-sig"))["id"]] = offset, len(line)
                lines += 1
            offset += len(line)
        if len(newest) == lines:
            return
        partial = target.with_name(f"{target.name}.partial")
        with partial.open("wb") as out:
            for start, length in newest.values():
                file.seek(start)
                out.write(file.read(length).rstrip(b"\r\n") + b"\n")
    # In one rename, so that an interruption leaves the old file whole.
    partial.replace(target)


def _with_rubric(group: Group, rubric: str | None) -> Group:
    if rubric is None or group.rubric_id is not None:
        return group
    return group.model_copy(update={"rubric_id": rubric})


def _requests(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """Yield the groups of one request after the other, within the service's limit of rollouts."""
    window: list[Group] = []
    for group in groups:
        rollouts = sum(len(each.rollouts) for each in window)
        if len(window) == GROUPS_PER_REQUEST or (
            window and rollouts + len(group.rollouts) > MAX_ROLLOUTS
        ):
            yield window
            window = []
        window.append(group)
    if window:
        yield window


def _parse_group(fields: dict[str, Any]) -> tuple[bool, Group]:
    """Return whether the row names its group, and the group."""
    rollouts = fields.get("rollouts")
    if isinstance(rollouts, list):
        fields["rollouts"] = [_parse_rollout(i, rollout) for i, rollout in enumerate(rollouts)]
    named = "id" in fields
    fields.setdefault("id", "unnamed")
    return named, Group.model_validate(fields)


def _parse_rollout(index: int, row: Any) -> Any:
    if isinstance(row, str):
        return {"id": f"r{index}", "text": row}
    if isinstance(row, list):
        return {"id": f"r{index}", "messages": row}
    return {"id": f"r{index}", **row} if isinstance(row, dict) else row


def _parse_scored(row: Any) -> tuple[str, ScoredLine]:
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
    options = row.get("options", {})
    return row["id"], ScoredLine(known, options if isinstance(options, dict) else {})


def _repair_last_line(target: Path) -> None:
    """End the last line of a file, or drop it if a writer that was killed left half of it."""
    if not target.exists() or not target.stat().st_size:
        return
    with target.open("r+b") as file:
        start = _start_of_last_line(file)
        file.seek(start)
        line = file.read()
        if not line:
            return
        try:
            parse(line.decode())
        except ValueError:
            file.truncate(start)
        else:
            file.write(b"\n")


def _start_of_last_line(file: BinaryIO) -> int:
    """Return where the line without a line feed begins: at the end if there is none."""
    end = file.seek(0, os.SEEK_END)
    # Backwards, chunk by chunk: the file may be large.
    while end:
        start = max(0, end - CHUNK_BYTES)
        file.seek(start)
        feed = file.read(end - start).rfind(b"\n")
        if feed >= 0:
            return start + feed + 1
        end = start
    return 0
