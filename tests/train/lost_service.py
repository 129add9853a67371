"""Runs of several processes that end early: without a service, or without a common folder."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from markscheme.errors import ConnectionFailed
from markscheme_train.checkpoints import last_checkpoint
from markscheme_train.config import build_config
from markscheme_train.errors import ConfigError, Interrupted
from markscheme_train.training import silence_libraries, train
from train.tiny import ScriptedClient


class Lost(ScriptedClient):
    def score(self, groups: Any, **options: Any) -> Any:
        if options["run"].step:
            raise ConnectionFailed("connection refused")
        return super().score(groups, **options)


def main(settings: Path) -> None:
    silence_libraries()
    config = build_config(json.loads(settings.read_text()))
    output = Path(config.output_dir)
    try:
        train(
            config,
            Lost(lambda place, rollout: place / 4),
            resume=False,
            on_record=lambda record: None,
        )
    except Interrupted:
        assert last_checkpoint(output) == output / "checkpoint-1"
    else:
        raise AssertionError("the run went on without a service")


def folder_each(settings: Path) -> None:
    """Write what each process is told when each node, or else each process, has its own folder."""
    silence_libraries()
    given = json.loads(settings.read_text())
    output = Path(given["output_dir"]) / os.environ.get("GROUP_RANK", os.environ["RANK"])
    try:
        train(
            build_config(given | {"output_dir": str(output)}),
            ScriptedClient(lambda place, rollout: place / 4),
            resume=False,
            on_record=lambda record: None,
        )
    except ConfigError as error:
        Path(f"{settings}-{os.environ['RANK']}").write_text(str(error))


if __name__ == "__main__":
    folder_each(Path(sys.argv[1]))
