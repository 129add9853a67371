"""Train the demo's model for a few steps, as `markscheme demo` does: `demo_run.py URL FOLDER`.

Print the run's id. The model is fetched once, into `build/smollm2`, as the demo's.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from markscheme import Client
from markscheme_train.demo.data import load_prompts
from markscheme_train.demo.model import ensure_model
from markscheme_train.demo.run import DemoSettings, demo_config, prepare_torch, write_prompts
from markscheme_train.run_report import RunReport
from markscheme_train.training import train

MODEL = Path(__file__).parents[2] / "build" / "smollm2"
STEPS, PROMPTS = 4, 4
"""Each step has two of the prompts: each prompt comes twice."""


def main(url: str, folder: Path) -> None:
    """Train in `folder` with the rewards of the service at `url`."""
    prepare_torch()
    config = demo_config(
        DemoSettings(folder, steps=STEPS),
        folder / "run",
        model=ensure_model(MODEL),
        data=write_prompts(load_prompts()[0][:PROMPTS], folder / "prompts.jsonl"),
        save_strategy="no",
    )
    with Client(url) as client:
        report = RunReport(client, config)
        with report:
            train(config, client, resume=False, on_start=report.start, on_record=report.add)
    sys.stdout.write(report.run_id)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
