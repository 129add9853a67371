"""``markscheme induce``: make rubrics ahead of a training."""

import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from markscheme.cli.output import (
    DATA_HELP,
    PromptColumn,
    TeacherColumn,
    Url,
    ViewOption,
    connect,
    describe_error,
    fail,
    messages,
    print_error,
    progress_bar,
    warn,
)
from markscheme.client import DEFAULT_URL
from markscheme.data import Columns
from markscheme.errors import MarkschemeError
from markscheme.induction import InductionEstimate, InductionReport, Inductions, Survey
from markscheme.student import Student
from markscheme.vocabulary import Thinking

INCOMPLETE = 3
"""Exit status when every row was asked for and some have no rubric."""
SHOWN_FAILURES = 20
"""Failed rows that are shown one by one."""


def induce(
    data: Annotated[
        str,
        typer.Argument(
            help=f"{DATA_HELP} Columns: prompt, and optionally student_responses and "
            "teacher_responses; the teacher bank's are used where a row has none."
        ),
    ],
    student: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint of the student, sampled for rows without responses. "
            "Its key is read from MARKSCHEME_STUDENT_API_KEY.",
        ),
    ] = None,
    student_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model there.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, max=64, help="Responses to sample for each prompt.")
    ] = 4,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of a sampled response.")
    ] = 1024,
    judge: Annotated[
        str | None,
        typer.Option(help="Judge that writes the rubrics. Default: the service's rubricator."),
    ] = None,
    thinking: Annotated[
        Thinking, typer.Option(help="Which thoughts are left out; see 'score'.")
    ] = "auto",
    view: ViewOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before paid calls.")] = False,
    prompt_column: PromptColumn = None,
    teacher_column: TeacherColumn = None,
    student_column: Annotated[
        str | None,
        typer.Option(help="Column of the student responses. Default: student_responses."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Prompts processed at the same time.")
    ] = 8,
    url: Url = DEFAULT_URL,
) -> None:
    """Create rubrics for prompts before a training.

    Contrasts teacher responses with student responses, prompt by prompt. A prompt that has a
    rubric is skipped, so run it again to continue. A training with 'reuse: frozen' then induces
    nothing.

    On a terminal it shows what the calls will cost and asks before it begins.

    Exit status: 0 every prompt has a rubric, 3 some have none, 1 failed, 130 interrupted.
    """
    if (student is None) != (student_model is None):
        fail("--student and --student-model go together")
    console = messages()
    report = InductionReport()
    try:
        with ExitStack() as stack:
            client = stack.enter_context(connect(url))
            model = None
            if student is not None and student_model is not None:
                model = stack.enter_context(Student(student, student_model, max_tokens=max_tokens))
            inductions = Inductions(
                client,
                data,
                columns=Columns(prompt_column, teacher_column, student_column),
                student=model,
                samples=samples,
                judge=judge,
                thinking=thinking,
                view=view,
                warn=warn,
            )
            rows = inductions.check()
            with progress_bar("looking up", console) as progress:
                bar = progress.add_task("rows", total=rows)
                survey = inductions.survey(
                    concurrency=concurrency, on_row=lambda: progress.advance(bar)
                )
            repeated = f", {survey.repeated:,} repeat a prompt" if survey.repeated else ""
            console.print(
                f"{rows:,} rows{repeated}; {survey.existing:,} prompts have a rubric, "
                f"{len(survey.missing):,} have none",
                soft_wrap=True,
            )
            estimate = inductions.estimate(survey)  # also says that there is no such judge
            if not survey.missing:
                return
            console.print(_describe(estimate, survey), soft_wrap=True)
            if not estimate.is_free and not yes and _is_terminal():
                typer.confirm("Go on?", abort=True, err=True)
            shown = 0

            def show(message: str) -> None:
                nonlocal shown
                shown += 1
                if shown <= SHOWN_FAILURES:
                    print_error(message)

            with progress_bar("inducing", console) as progress:
                bar = progress.add_task("prompts", total=len(survey.missing))
                inductions.induce(
                    survey,
                    report,
                    concurrency=concurrency,
                    on_row=lambda: progress.advance(bar),
                    on_failure=show,
                )
    except (MarkschemeError, ValueError, OSError) as error:
        begun = report.induced or report.failed
        stopped = f"\n{report}; run the command again to go on" if begun else ""
        fail(describe_error(error) + stopped)
    except KeyboardInterrupt:
        fail(f"stopped; run the command again to go on. {report}", 130)
    console.print(str(report), soft_wrap=True)
    if report.failed:
        raise typer.Exit(INCOMPLETE)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _describe(estimate: InductionEstimate, survey: Survey) -> str:
    """Return the estimate in words, with what it assumes."""
    lines = []
    if estimate.student_calls:
        lines.append(
            f"student: {estimate.student_calls:,} responses, up to {estimate.student_tokens:,} "
            "tokens"
        )
    judge = estimate.judge
    if judge is not None and judge.kind == "builtin":
        lines.append("rubricator: builtin (rules): no model is asked, nothing to pay")
        return "\n".join(lines)
    cost = (
        f"about {estimate.cost_usd:,.2f} USD"
        if estimate.cost_usd is not None
        else "cost unknown: its prices are not set, or this key may not read them"
    )
    lines.append(
        f"rubricator{f' {judge.name} ({judge.model})' if judge else ''}: {estimate.calls:,} calls, "
        f"about {estimate.prompt_tokens:,} prompt and {estimate.reply_tokens:,} reply tokens; "
        f"{cost}"
    )
    bank = (
        f", without the bank's teacher responses for {survey.without_teachers:,} prompts"
        if survey.without_teachers
        else ""
    )
    lines.append(f"assumes 4 characters a token, 8 criteria, no retries and no thinking{bank}")
    return "\n".join(lines)
