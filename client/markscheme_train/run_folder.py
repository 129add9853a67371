"""The folder of a run, and whether a run may be resumed from it.

It holds the run's id at the service, and the settings that decide what the run learns.
"""

import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markscheme.data import open_source
from markscheme.integrations.processes import current_process_group
from markscheme_train.checkpoints import last_checkpoint, processes_of
from markscheme_train.config import TrainConfig
from markscheme_train.errors import ConfigError
from markscheme_train.sharding import weight_sharding

RUN_ID_FILE = "run_id"
MAX_NAME = 150
"""Characters of its folder's name in the name that a run is given."""
SETTINGS_FILE = "settings.json"
CHANGEABLE_ON_RESUME = (
    "output_dir",
    "markscheme_url",
    "run_id",
    "max_outage_s",
    "max_late_s",
    "max_unscored",
    "on_collapse",
    "data",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "max_steps",
    "num_train_epochs",
    "resume_from_checkpoint",
    "report_to",
    "run_name",
    "disable_tqdm",
    "local_rank",
    "num_completions_to_print",
    "preset",
    "deepspeed_plugin",
    "project",
    "trackio_space_id",
    "do_eval",
    "num_generations_eval",
    "per_device_eval_batch_size",
    "early_stopping_patience",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)
CHANGEABLE_PREFIXES = (
    "save_",
    "logging_",
    "log_",
    "hub_",
    "push_to_",
    "eval_",
    "dataloader_",
    "vllm_server_",
    "vllm_group_",
    "ddp_timeout",
    "skip_memory",
    "use_liger",
    "_",
)
"""Settings that a resumed run may change, by name and by prefix.

They set how long it goes on, where it is saved and shown, and which service it uses. All others
determine what it learns.
"""
CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")


def has_run(output: Path) -> bool:
    """Return whether there is a run to resume under `output`, even one without a checkpoint."""
    return (output / SETTINGS_FILE).is_file() or last_checkpoint(output) is not None


def check_one_folder(output: Path) -> None:
    """Refuse processes whose `output_dir` is not one folder, as on nodes without a shared disk.

    A checkpoint has parts of every process, and each must find the same one.
    """
    processes = current_process_group()
    mark = output / f".{processes.gather([secrets.token_hex(8)])[0]}"

    def write() -> None:
        if processes.rank == 0:
            try:
                output.mkdir(parents=True, exist_ok=True)
                mark.touch()
            except OSError as error:
                raise ConfigError(f"output_dir: cannot write {output}: {error.strerror}") from error

    processes.share(write)
    seen = processes.share(mark.is_file)
    if processes.rank == 0:
        mark.unlink()
    if blind := [str(rank) for rank, found in enumerate(seen) if not found]:
        raise ConfigError(
            f"output_dir: {output} is another folder for the processes {', '.join(blind)} than for "
            "the first. Checkpoints have parts of all: name a folder on a disk that all nodes share"
        )


def check_resume_config(config: TrainConfig, output: Path, *, resume: bool) -> bool:
    """Store what decides a run, or compare it with what the run stored before.

    Returns whether this is the run that was started before: one without a checkpoint may become
    another. Raises `ConfigError` if a setting was changed that must not be.
    """
    # A run without a checkpoint has learnt nothing: it may start again with other settings.
    file = output / SETTINGS_FILE
    now = config_fingerprint(config)
    if (
        resume
        and file.is_file()
        and (last_checkpoint(output) is not None or json.loads(file.read_text()) == now)
    ):
        before = json.loads(file.read_text())
        changed = [
            f"{name} was {before[name]} and is {value}"
            for name, value in now.items()
            if name in before and before[name] != value and name not in ("data", "eval_data")
        ]
        # A hash tells a reader nothing, so the message names the file. An evaluation may be added.
        for name, source in (("data", config.data), ("eval_data", config.eval_data)):
            if source and name in before and before[name] != now[name]:
                changed.append(f"{source} has other contents")
        if changed:
            raise ConfigError(
                f"this is not the run that {output} holds: {'; '.join(changed)}. Set it back, or "
                "start a run in another output_dir"
            )
        return True
    if config.process_index == 0:
        try:
            output.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(now, indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"output_dir: cannot write {file}: {error.strerror}") from error
    return False


def check_processes(
    config: TrainConfig, checkpoint: Path, on_warning: Callable[[str], None]
) -> None:
    """Warn that a run goes on with another number of processes than wrote its checkpoint.

    Raises `ConfigError` with DeepSpeed's stages 1 and 2, and with weights or optimiser on a disk.
    """
    before, now = processes_of(checkpoint), config.world_size
    if before == now:
        return
    if config.deepspeed_plugin is not None and not _can_be_cut_anew(config.deepspeed_plugin):
        raise ConfigError(
            f"{checkpoint} was written by {before} processes and there are {now}: resume it with "
            f"{before}. With DeepSpeed only ZeRO 3 can go on with another number, with nothing "
            "offloaded to a disk"
        )
    if config.process_index == 0:
        on_warning(
            f"{checkpoint.name} was written by {before} processes and there are {now}: weights, "
            "optimiser, self-teacher and the order of the prompts go on as they were, but the "
            "random numbers start anew, so the rollouts are others than on "
            f"{before} processes"
        )


def _can_be_cut_anew(plugin: Any) -> bool:
    zero = plugin.deepspeed_config["zero_optimization"]
    on_disk = any(
        (zero.get(name) or {}).get("device") == "nvme"
        for name in ("offload_optimizer", "offload_param")
    )
    return plugin.zero_stage == 3 and not on_disk


def config_fingerprint(config: TrainConfig) -> dict[str, Any]:
    """Return what the outcome of a run follows from, as JSON.

    These are the settings that may not change on resume, the data, and how the weights are sharded;
    the length of the run only where the learning rate or the self-teacher's rate depends on it. Of
    a batch only its size and its number of steps count, not how processes divide it.
    """
    settings = {
        name: value
        for name, value in config.to_dict().items()
        if name not in CHANGEABLE_ON_RESUME and not name.startswith(CHANGEABLE_PREFIXES)
    }
    if (
        config.lr_scheduler_type.value not in CONSTANT_SCHEDULES
        or config.teacher_rate_schedule != "constant"
    ):
        settings |= {"max_steps": config.max_steps, "num_train_epochs": config.num_train_epochs}
    settings |= {
        "data": open_source(config.data).fingerprint(),
        "rollouts_per_step": config.per_device_train_batch_size
        * config.gradient_accumulation_steps
        * config.world_size,
        "weights": weight_sharding(config),
    }
    if config.eval_data:
        settings |= {"eval_data": open_source(config.eval_data).fingerprint()}
    # In the form in which it is read back, so that the two can be compared.
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str, sort_keys=True))
    return plain


def resolve_run_id(config: TrainConfig, output: Path, *, resume: bool) -> str:
    """Return the run's name at the service: as configured, or made up once and stored.

    A new run must not reuse an earlier name, or it would get that run's rubrics; a resumed run
    must. All ranks ask under the name of rank 0, so only that is stored.
    """
    file = output / RUN_ID_FILE
    if config.run_id:
        return config.run_id
    if resume and file.is_file():
        return file.read_text().strip()
    # A folder may have a name that no run can have.
    name = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", output.name)[:MAX_NAME]
    run_id = f"{name}-{secrets.token_hex(4)}"
    if config.process_index == 0:
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(run_id + "\n")
    return run_id
