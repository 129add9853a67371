"""Steps of the `GRPOTrainer` of a TRL with several rewards, one of them async."""

import json
import sys
import tempfile
from pathlib import Path

import trl

from train.plain_trl import Shown, train

if trl.__version__.startswith("1.15."):
    # The kernels of its loss need a GPU, and it has no other; the rewards come before.
    Shown.compute_loss = lambda _self, model, *_, **__: 0 * next(model.parameters()).sum()
facts = {"version": trl.__version__}
# TRL 1.13 takes no object for an async function.
for together in (False, True)[: 1 if trl.__version__.startswith("1.13.") else 2]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = train(Path(folder), 4, together=together)
        logged = trainer.state.log_history[0]
        facts["together" if together else "beside"] = {
            "advantages": trainer.advantages,
            **{
                name: value for name, value in logged.items() if name.startswith(("re", "to", "ru"))
            },
        }
sys.stdout.write("\n" + json.dumps(facts))
