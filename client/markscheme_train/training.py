"""One training run from its configuration: load, train, save."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
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
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from markscheme.errors import MarkschemeError
from markscheme.integrations.trl import Unscored
from markscheme.thinking import opens_thought
from markscheme.vocabulary import TRANSIENT_REASONS, Thinking, describe_reasons
from markscheme_train.callbacks import SaveAtBatchEnd, StopOnInterrupt, StopOnNonFinite
from markscheme_train.checkpoints import RngState, best_checkpoint, last_checkpoint, step_of
from markscheme_train.config import TrainConfig
from markscheme_train.config_checks import check_installed, small_step_warning
from markscheme_train.data import (
    Example,
    as_dataset,
    check_template,
    read_examples,
    within_length,
)
from markscheme_train.errors import (
    SETTING_ERRORS,
    Collapsed,
    ConfigError,
    DataError,
    Interrupted,
    ModelError,
    Stopped,
    TrainError,
)
from markscheme_train.evaluation import (
    EvaluationFlow,
    check_eval_size,
    eval_run_id,
    stopped_early,
)
from markscheme_train.other_rewards import import_rewards
from markscheme_train.reward import RubricReward, Scorer, is_outage
from markscheme_train.run_folder import (
    check_one_folder,
    check_processes,
    check_resume_config,
    has_run,
    resolve_run_id,
)
from markscheme_train.step_log import EvaluationRecord, StepRecord, StepRecorder
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.zero import whole_weights

STEPS_FILE = "steps.jsonl"


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
    if resume and checkpoint is not None:
        check_processes(config, checkpoint, on_warning)
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

    Raises `DataError`, also if all are too long or the chat template refuses one.
    """
    dataset = as_dataset(examples, chat=tokenizer.chat_template is not None)
    limit, template = config.max_prompt_length, config.chat_template_kwargs or {}
    check_template(dataset, tokenizer, template)
    if limit is None:
        return dataset
    short = within_length(dataset, tokenizer, limit, template)
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
