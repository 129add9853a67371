"""What the process imports from which others are forked. See `train.forked`."""

import gc

from train import (  # noqa: F401
    evaluated_run,
    grouped_run,
    heartbeats,
    killed_run,
    lost_service,
    plain_trl,
    recorded_run,
    sharded_loss,
    sharded_run,
    step_means,
    zero_run,
)

# Otherwise each collection in each process goes through all that was imported: 0.4 s of CPU, and
# every training makes one at its end.
gc.collect()
gc.freeze()
