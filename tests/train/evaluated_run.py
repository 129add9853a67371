"""A run of several processes with evaluations and dynamic sampling; writes what was asked."""

import json
from pathlib import Path
from typing import Any

from markscheme.integrations.processes import current_process_group
from markscheme_train import training
from markscheme_train.config import build_config
from markscheme_train.training import silence_libraries, train
from train.recorded_run import Recorded
from train.tiny import ScriptedClient


class EqualFor(ScriptedClient):
    """Rewards by place, but all rollouts of the given prompts alike."""

    def __init__(self, equal: list[str]) -> None:
        super().__init__(lambda place, rollout: place / 4)
        self.equal = equal

    def _group(self, group: Any) -> Any:
        equal = group.prompt in self.equal
        self.script = (lambda place, rollout: 0.5) if equal else (lambda place, rollout: place / 4)
        return super()._group(group)


def main(settings: Path, out: Path) -> None:
    given = json.loads(settings.read_text())
    client, resume = EqualFor(given.pop("equal")), given.pop("resume", False)
    if given.pop("recorded", False):
        training.MarkschemeTrainer = Recorded  # type: ignore[misc]
    silence_libraries()
    train(build_config(given), client, resume=resume, on_record=lambda record: None)
    groups = [(call["run"].id, group) for call in client.calls for group in call["groups"]]
    everyone = current_process_group()
    # The processes share the groups of a batch, whose ids say the batch and the place in it.
    batches: dict[tuple[str, str], list[Any]] = {}
    for run_id, group in everyone.gather(groups):
        batch, _, _ = group.id.rpartition("-p")
        batches.setdefault((run_id, batch), []).append([group.prompt, len(group.rollouts)])
    if everyone.rank == 0:
        asked = [[run_id, asked] for (run_id, _), asked in batches.items()]
        out.write_text(json.dumps(asked))
