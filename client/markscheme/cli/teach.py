"""``markscheme teach``: fill the service's teacher bank from a file and from its teacher."""

from pathlib import Path
from typing import Annotated

import typer

from markscheme.cli.output import Url, connect, fail, messages, progress_bar
from markscheme.client import DEFAULT_URL
from markscheme.errors import MarkschemeError


def teach(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSONL, one prompt a line: {"prompt"} and optionally "teacher_responses", '
            "which are stored as they are."
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
            "prompts of FILE that they belong to."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Prompts that the teacher is asked for at the same time.")
    ] = 8,
) -> None:
    """Fill the teacher bank for a file of prompts.

    Stores the file's responses, then has the service ask its teacher for those that are missing.
    Run it again to go on: a prompt that has enough responses costs nothing.
    """
    from markscheme.teaching import TeachReport, read_prompts, teach_all

    console = messages()
    report = TeachReport()
    try:
        entries = read_prompts(file, ropd_index)
        with connect(url) as client, progress_bar("teaching", console) as progress:
            bar = progress.add_task("prompts", total=len(entries))
            teach_all(
                client,
                entries,
                report,
                count=count,
                concurrency=concurrency,
                on_prompt=lambda: progress.advance(bar),
            )
    except (MarkschemeError, ValueError, OSError) as error:
        fail(f"{error}\n{report}")
    except KeyboardInterrupt:
        fail(f"stopped; run the command again to go on. {report}", 130)
    console.print(str(report), soft_wrap=True)
