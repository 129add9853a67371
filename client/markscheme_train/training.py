"""One training run from its configuration: load, train, save; stop and resume."""

import json
import secrets
import signal
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from markscheme.data import open_source
from markscheme.errors import MarkschemeError
from markscheme.integrations.processes import current_process_group
from markscheme.integrations.trl import Unscored
from markscheme.thinking import opens_thought
from markscheme.vocabulary import TRANSIENT_REASONS, Thinking, describe_reasons
from markscheme_train.checkpoints import RngState, best_checkpoint, last_checkpoint, step_of
from markscheme_train.config import TrainConfig
from markscheme_train.config_checks import check_installed, small_step_warning
from markscheme_train.data import Example, as_dataset, read_examples, within_length
from markscheme_train.errors import (
    SETTING_ERRORS,
    Collapsed,
    ConfigError,
    DataError,
    Interrupted,
    ModelError,
    Stopped,
    TrainError,
    diverged,
)
from markscheme_train.evaluation import (
    EvaluationFlow,
    check_eval_size,
    eval_run_id,
    is_due,
    stopped_early,
)
from markscheme_train.other_rewards import import_rewards
from markscheme_train.reward import RubricReward, Scorer, is_outage
from markscheme_train.self_teacher import local_part
from markscheme_train.step_log import EvaluationRecord, StepRecord, StepRecorder
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.zero import whole_weights

RUN_ID_FILE = "run_id"
STEPS_FILE = "steps.jsonl"
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

They say how long it goes on, where it is saved and shown, and whom it asks. All others decide what
it learns.
"""
CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")


def silence_libraries() -> None:
    """Leave the terminal to our own view: no progress bars, no warnings about TRL's own code."""
    disable_progress_bar()
    set_verbosity_error()
    warnings.filterwarnings(
        "ignore", message="`.*gradient_checkpointing.*` is deprecated", category=FutureWarning
    )


def train(
    config: TrainConfig,
    client: Scorer,
    *,
    resume: bool,
    on_record: Callable[[StepRecord], None],
    on_start: Callable[[str], None] = lambda run_id: None,
    on_evaluation: Callable[[EvaluationRecord], None] = lambda record: None,
    on_wait: Callable[[str, float], None] = lambda why, seconds: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> Path:
    """Train as configured and return the folder of the finished model.

    Args:
        config: The configuration.
        client: Scores the rollouts.
        resume: Go on from the last checkpoint under `output_dir`.
        on_record: Called with each finished step.
        on_start: Called with the run's id, by one process, before the first step.
        on_evaluation: Called with each evaluation.
        on_wait: Called with the reason and the seconds while the run waits for the service.
        on_warning: Called with what looks wrong in the configuration or the data, and why a run
            ended early.

    Raises:
        Interrupted: The service is lost, or leaves too much unscored for now; saved.
        Stopped: Ctrl-C; saved.
        Collapsed: `on_collapse` is `stop`, and a rule saw a collapse; saved.
        TrainError: The run cannot go on.
    """
    output = Path(config.output_dir)
    if config.world_size > 1:
        check_one_folder(output)
    checkpoint = last_checkpoint(output)
    if resume and not has_run(output):
        raise ConfigError(f"nothing to resume: no run was begun under {output}")
    if checkpoint is not None and not resume:
        raise ConfigError(
            f"{output} holds a run that has got to {checkpoint.name}: go on with --resume, or "
            "start another in a different output_dir"
        )
    check_installed(config)
    other_rewards = import_rewards(config.rewards, config.reward_weights)
    if (warning := small_step_warning(config)) is not None and config.process_index == 0:
        on_warning(warning)
    examples = read_examples(
        config.data, config.columns, on_warning, other_columns=bool(other_rewards)
    )
    eval_examples = (
        read_examples(config.eval_data, config.columns, on_warning) if config.eval_data else []
    )
    resume = check_resume_config(config, output, resume=resume)
    model, tokenizer = load_model(config)
    run_id = resolve_run_id(config, output, resume=resume)
    make_reward = partial(
        RubricReward,
        client,
        verify=config.verify,
        thinking=resolve_thinking(config, tokenizer),
        clamp=config.clamp,
        view=config.view,
        eos_token_ids=eos_token_ids(model, tokenizer),
        max_outage_s=config.max_outage_s,
        on_wait=on_wait,
    )
    reward = make_reward(
        num_generations=config.num_generations,
        run_id=run_id,
        reuse=config.reuse,
        score_teachers=config.teacher_demonstration,
        ask_teacher=config.ask_teacher,
        max_unscored=config.max_unscored,
        max_late_s=config.max_late_s,
    )
    # Its rubrics exist already: the curve must not change with the rubrics.
    eval_reward = make_reward(
        num_generations=config.num_generations_eval or config.num_generations,
        run_id=eval_run_id(run_id),
        reuse="frozen",
    )
    trainer = build_trainer(
        config,
        model,
        tokenizer,
        examples,
        reward,
        other_rewards=other_rewards,
        eval_examples=eval_examples,
        eval_reward=eval_reward if eval_examples else None,
        on_warning=on_warning,
    )
    stop = StopOnInterrupt(trainer)
    trainer.add_callback(stop)
    trainer.add_callback(
        StepRecorder(trainer, output / STEPS_FILE, on_record, on_evaluation, resumed=resume)
    )
    trainer.add_callback(EvaluationFlow(trainer))
    trainer.add_callback(StopOnNonFinite(trainer))
    # Added last: it delays what the callbacks before it ask for.
    save_at_batch_end = SaveAtBatchEnd(trainer)
    trainer.add_callback(save_at_batch_end)
    if config.process_index == 0:
        on_start(run_id)
    try:
        # A run that was killed after its last checkpoint only has its model to save.
        finished = checkpoint is not None and finished_model(config, checkpoint)
        if finished:
            save_finished_model(trainer, finished, output)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            trainer.save_model(str(output))
    except MarkschemeError as error:
        # With the generators of the last batch's end, a resumed run samples the same rollouts.
        saved = save_checkpoint(trainer, save_at_batch_end.rng_state)
        if isinstance(error, Unscored) and not error.may_pass:
            state = f"Saved {saved}." if saved else "No step was finished."
            raise TrainError(f"{error}\n{resume_advice(error)} {state}") from error
        if not isinstance(error, Unscored) and not is_outage(error):
            state = (
                f"Saved {saved}. Once that is mended, go on with --resume."
                if saved
                else "No step was finished. Once that is mended, start again with --resume."
            )
            raise TrainError(f"the rubric service failed: {error}\n{state}") from error
        state = (
            f"Saved {saved}; go on with --resume."
            if saved
            else "No step was finished; start again with --resume."
        )
        if isinstance(error, Unscored):
            raise Interrupted(f"{error}\n{resume_advice(error)} {state}") from error
        raise Interrupted(f"the rubric service failed: {error}\n{state}") from error
    collapse = trainer.guard.stopped_by
    if collapse is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Collapsed(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}, as "
            f"on_collapse says; saved in {output}.\n{collapse.message}\nOr go on as it is with "
            "--resume: the run does not stop for this again"
        )
    steps_left = trainer.state.global_step < trainer.state.max_steps
    if steps_left and stopped_early(config, trainer.state.log_history):
        on_warning(
            f"stopped early: since step {trainer.state.best_global_step} no evaluation has had a "
            f"better reward ({trainer.state.best_metric:.2f})"
        )
        return output
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(
            f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; saved "
            f"in {output}. Go on with --resume"
        )
    return output


def resume_advice(error: Unscored) -> str:
    """Return the reasons and what to do about them, on one line."""
    if error.may_pass:
        passing = " and ".join(sorted(name for name in error.reasons if name in TRANSIENT_REASONS))
        helps = f"Once {passing} has passed, --resume helps: it asks for the very same rollouts."
    else:
        helps = "--resume alone does not help: mend that first, or raise max_unscored, then use it."
    return " ".join([*describe_reasons(error.reasons), helps])


def finished_model(config: TrainConfig, checkpoint: Path) -> str | None:
    """Return the checkpoint that holds the run's final model, `None` while steps are left."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if not (
        0 < config.max_steps <= step_of(checkpoint) or stopped_early(config, state.log_history)
    ):
        return None
    best = best_checkpoint(checkpoint.parent, state.best_global_step)
    return best if config.load_best_model_at_end and best else str(checkpoint)


def save_finished_model(trainer: MarkschemeTrainer, checkpoint: str, output: Path) -> None:
    """Save a checkpoint's model as that of the run, without training."""
    with whole_weights(trainer.model):
        trainer._load_from_checkpoint(checkpoint)
        # Only training makes the engine by which `save_model` saves under DeepSpeed.
        save = trainer._save if trainer.is_deepspeed_enabled else trainer.save_model
        save(str(output))


def has_run(output: Path) -> bool:
    """Return whether there is a run to resume under `output`, even one without a checkpoint."""
    return (output / SETTINGS_FILE).is_file() or last_checkpoint(output) is not None


def build_trainer(
    config: TrainConfig,
    model: Any,
    tokenizer: Any,
    examples: list[Example],
    reward: RubricReward,
    *,
    other_rewards: Sequence[Callable[..., Any]] = (),
    eval_examples: list[Example] | None = None,
    eval_reward: RubricReward | None = None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> MarkschemeTrainer:
    """Return a trainer that reports through callbacks only, without transformers' printers.

    Raises `ConfigError` for settings that TRL refuses.
    """
    dataset = prompts_of(config, examples, tokenizer, on_warning, config.data)
    eval_dataset = None
    if eval_examples:
        eval_dataset = prompts_of(config, eval_examples, tokenizer, on_warning, config.eval_data)
        check_eval_size(config, eval_dataset)
    per_batch = config.generation_batch_size // config.num_generations
    if len(dataset) < per_batch:
        raise ConfigError(
            f"{config.data} has {len(dataset)} prompts, fewer than the {per_batch} of one batch"
        )
    try:
        # Only TRL's training would look for the optimiser's package.
        Trainer.get_optimizer_cls_and_kwargs(config, model)
        trainer = MarkschemeTrainer(
            model,
            reward,
            config,
            other_rewards=other_rewards,
            eval_reward=eval_reward,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )
    except SETTING_ERRORS as error:
        raise ConfigError(f"these settings cannot be used: {error}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def prompts_of(
    config: TrainConfig,
    examples: list[Example],
    tokenizer: Any,
    on_warning: Callable[[str], None],
    source: str,
) -> Dataset:
    """Return the examples as TRL's rows, without those whose prompt is too long.

    Raises `DataError`, also if all are too long.
    """
    dataset = as_dataset(examples, chat=tokenizer.chat_template is not None)
    limit = config.max_prompt_length
    if limit is None:
        return dataset
    short = within_length(dataset, tokenizer, limit, config.chat_template_kwargs or {})
    if not len(short):
        raise DataError(
            f"all {len(dataset)} prompts of {source} are longer than max_prompt_length ({limit} "
            "tokens): raise it, or leave it empty"
        )
    if len(short) < len(dataset):
        on_warning(
            f"{source}: {len(dataset) - len(short)} of {len(dataset)} prompts are longer than "
            f"{limit} tokens (max_prompt_length) and left out"
        )
    return short


def load_model(config: TrainConfig) -> tuple[Any, Any]:
    """Load the model and its tokenizer.

    Weights are fp32 unless `model_init_kwargs` says otherwise. Raises `ModelError`.
    """
    if _is_local(config.model) and not Path(config.model).is_dir():
        raise ModelError(f"there is no model folder `{config.model}`")
    options = {
        "dtype": torch.float32,
        "trust_remote_code": config.trust_remote_code,
        **(config.model_init_kwargs or {}),
    }
    source = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    # Applied to the model below; the trainer gets it loaded.
    config.model_init_kwargs = None
    try:
        model = AutoModelForCausalLM.from_pretrained(config.model, **options)
        tokenizer = AutoTokenizer.from_pretrained(config.model, **source)
    except (*SETTING_ERRORS, AttributeError) as error:
        why = str(error).partition("\n")[0]
        raise ModelError(f"cannot load the model `{config.model}`: {why}") from error
    if config.lora_rank is not None:
        set_seed(config.seed)  # the adapter is initialised at random
        adapter = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            target_modules=config.lora_target_modules,
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            task_type="CAUSAL_LM",
        )
        try:
            model = get_peft_model(model, adapter)
        except ValueError as error:
            raise ConfigError(f"lora_target_modules: {error}") from error
    return model, tokenizer


def _is_local(model: str) -> bool:
    """Return whether a model is named by a path: a hub name is `model` or `owner/model`."""
    return model.startswith(("/", ".", "~")) or model.count("/") > 1


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return every token that ends a response, the model's and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    declared = [declared] if isinstance(declared, int) else list(declared or [])
    return sorted({*declared, tokenizer.eos_token_id} - {None})


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


def config_fingerprint(config: TrainConfig) -> dict[str, Any]:
    """Return what the outcome of a run follows from, as JSON.

    These are the settings that may not change on resume, the data and the number of processes; the
    length of the run only where the learning rate or the self-teacher's rate depends on it.
    """
    decisive = {
        name: value
        for name, value in config.to_dict().items()
        if name not in CHANGEABLE_ON_RESUME and not name.startswith(CHANGEABLE_PREFIXES)
    }
    if (
        config.lr_scheduler_type.value not in CONSTANT_SCHEDULES
        or config.teacher_rate_schedule != "constant"
    ):
        decisive |= {"max_steps": config.max_steps, "num_train_epochs": config.num_train_epochs}
    decisive |= {
        "data": open_source(config.data).fingerprint(),
        "processes": config.world_size,
    }
    if config.eval_data:
        decisive |= {"eval_data": open_source(config.eval_data).fingerprint()}
    # In the form in which it is read back, so that the two can be compared.
    plain: dict[str, Any] = json.loads(json.dumps(decisive, default=str, sort_keys=True))
    return plain


def resolve_thinking(config: TrainConfig, tokenizer: Any) -> Thinking:
    """Return what is judged of a rollout: as configured, or as the chat template requires."""
    if config.thinking != "auto" or tokenizer.chat_template is None:
        return config.thinking
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}],
        tokenize=False,
        add_generation_prompt=True,
        **(config.chat_template_kwargs or {}),
    )
    return "strip" if opens_thought(rendered) else "auto"


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
    run_id = f"{output.name}-{secrets.token_hex(4)}"
    if config.process_index == 0:
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(run_id + "\n")
    return run_id


def save_checkpoint(trainer: MarkschemeTrainer, rng_state: RngState | None) -> Path | None:
    """Save the state after the last finished batch; a resumed run repeats the next one exactly.

    Args:
        trainer: The trainer.
        rng_state: The generators after that batch; `None`: no batch was finished.

    Returns:
        The newest checkpoint, or `None`.
    """
    if rng_state is not None:
        rng_state.restore()
        trainer._save_checkpoint(trainer.model, trial=None)
    return last_checkpoint(Path(trainer.args.output_dir))


class StopOnNonFinite(TrainerCallback):  # type: ignore[misc]
    """Raises `Diverged` before a step is taken on gradients that are not finite.

    DeepSpeed has taken the step by then: there `GuardedEngine` does it.
    """

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients."""
        if self._trainer.accelerator.scaler is not None:
            return  # fp16: the scaler skips a step that overflowed and retries on a smaller scale
        broken = [
            ~local_part(p.grad).isfinite().all()
            for p in self._trainer.model.parameters()
            if p.grad is not None
        ]
        accelerator = self._trainer.accelerator
        found = torch.stack(broken).any() if broken else torch.tensor(False)
        # A process may hold a part that is whole; all must stop.
        if accelerator.reduce(found.float().to(accelerator.device)).item():
            raise diverged(state.global_step + 1)


class SaveAtBatchEnd(TrainerCallback):  # type: ignore[misc]
    """Delays saving, stopping and evaluating to the end of the generated batch.

    A checkpoint cannot hold a half-used batch, and the best evaluation needs one. Add it after the
    callbacks that ask for any. `rng_state` is the state at the end of the last batch.
    """

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer
        self.rng_state: RngState | None = None
        self._save = self._stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold back requests until the batch is finished."""
        self._save |= control.should_save
        self._stop |= control.should_training_stop
        # Held back on every step; the end of the batch hands them on.
        control.should_save = control.should_training_stop = control.should_evaluate = False
        if self._trainer._step % (args.steps_per_generation * args.num_iterations) == 0:
            control.should_save, control.should_training_stop = self._save, self._stop
            self._save = self._stop = False
            self.rng_state = RngState()
            # A run that was told to stop does so now; it evaluates when it is resumed.
            interrupted = control.should_training_stop and state.global_step < state.max_steps
            control.should_evaluate = not interrupted and is_due(args, state)


class StopOnInterrupt(TrainerCallback):  # type: ignore[misc]
    """Ends the run on Ctrl-C after the current step, with a checkpoint; on a second one at once.

    One of several processes may get the signal a step earlier; then all stop together.
    """

    def __init__(self, trainer: MarkschemeTrainer) -> None:
        self._trainer = trainer
        self.asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the signal handler."""
        self._before = signal.signal(signal.SIGINT, self._ask)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if any process was asked to."""
        accelerator = self._trainer.accelerator
        # A collective, which every process must enter, asked or not.
        if accelerator.reduce(torch.tensor(float(self.asked), device=accelerator.device)).item():
            self.asked = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the signal handler."""
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
