"""``markscheme teach``: fill the service's teacher bank from data and from its teacher."""

from pathlib import Path
from typing import Annotated

import typer

from markscheme.cli.output import (
    DATA_HELP,
    PromptColumn,
    TeacherColumn,
    Url,
    connect,
    describe_error,
    fail,
    messages,
    progress_bar,
    warn,
)
from markscheme.client import DEFAULT_URL
from markscheme.data import Columns, windows
from markscheme.errors import MarkschemeError

WINDOW = 256
"""Prompts that are held in memory at a time."""


def teach(
    data: Annotated[
        str,
        typer.Argument(
            help=f"{DATA_HELP} Columns: prompt and optionally teacher_responses, which are stored "
            "as they are, and teacher_model."
        ),
    ],
    count: Annotated[
        int,
        typer.Option(min=0, max=16, help="Responses each prompt should have; 0 samples none."),
    ] = 4,
    ropd_index: Annotated[
        Path | None,
        typer.Option(
            help="A teacher index of ROPD (JSONL, v1 or v2); its answers are stored for the "
            "prompts of DATA that they belong to."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    concurrency: Annotated[int, typer.Option(min=1, help="Prompts sampled at the same time.")] = 8,
    prompt_column: PromptColumn = None,
    teacher_column: TeacherColumn = None,
) -> None:
    """Fill the teacher bank for prompts.

    Stores the responses that the data hold, then has the service ask its teacher for those that
    are missing. Run it again to continue: a prompt that has enough responses costs
    nothing.
    """
    from markscheme.teaching import Prompts, TeachReport, teach_all

    console = messages()
    report = TeachReport()
    try:
        prompts = Prompts(data, ropd_index, Columns(prompt_column, teacher_column), warn)
        total = prompts.check()
        with connect(url) as client, progress_bar("teaching", console) as progress:
            bar = progress.add_task("prompts", total=total)
            for window in windows(prompts, WINDOW):
                teach_all(
                    client,
                    window,
                    report,
                    count=count,
                    concurrency=concurrency,
                    on_prompt=lambda: progress.advance(bar),
                )
    except (MarkschemeError, ValueError, OSError) as error:
        begun = report.prompts or report.from_file
        fail(describe_error(error) + (f"\n{report}" if begun else ""))
    except KeyboardInterrupt:
        fail(f"stopped; run the command again to go on. {report}", 130)
    console.print(str(report), soft_wrap=True)
