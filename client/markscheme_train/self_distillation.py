"""SDPO and SRPO: routing, the self-teacher's forward pass, the inputs of the joint loss.

The self-teacher runs once per generated batch, on routed rows only. Until the update only its
hidden states are kept, a few thousand numbers a token instead of a vocabulary, and its entropies,
because the entropy weights' mean is that of the whole optimiser step over all processes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from markscheme.integrations.conversation import Conversation, text_if_plain
from markscheme.thinking import judged_text
from markscheme.vocabulary import Thinking
from markscheme_train.config import TrainConfig
from markscheme_train.demonstration import fitting, readable
from markscheme_train.diagnostics import GAINS, NORMS, BranchNorms, TeacherGains, shares
from markscheme_train.distillation import divergences, token_log_probs
from markscheme_train.losses import (
    SrpoConfig,
    SrpoInputs,
    entropy_weight_sums,
    entropy_weights,
    srpo_loss,
)
from markscheme_train.reprompt import Prompt, build_teacher_prompt
from markscheme_train.reward import Row, RowScore
from markscheme_train.routing import TEACHER, Branch, Routes, route
from markscheme_train.self_teacher import SelfTeacher
from markscheme_train.student_forward import StudentStates


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rollouts of all processes, group after group, with their scores.

    `teacher_scores` holds for each row the rewards of its group's teacher responses, if they were
    asked for.
    """

    rollouts: Sequence[Row]
    row_scores: Sequence[RowScore]
    teacher_scores: Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """What the self-teacher reads for a row, and whether the row learns from it.

    `demonstration` is a text or the messages of a trajectory. `external` means that it is the
    teacher's response, not a sibling's. `control` marks one success a group with a demonstration:
    how the self-teacher rates it is measured, whether or not it is routed.
    """

    routed: bool
    demonstration: Conversation | None
    feedback: Sequence[str]
    external: bool
    failure: bool
    control: bool


class SelfDistillation:
    """The part of SDPO and SRPO that is not GRPO.

    Args:
        config: The configuration.
        self_teacher: The self-teacher.
        tokenizer: The student's.
        template: How the trainer renders the student's prompts: `tools` and `chat_template`.
        thinking: Which thoughts of a demonstration are left out: those that are not judged.
    """

    def __init__(
        self,
        config: TrainConfig,
        self_teacher: SelfTeacher,
        tokenizer: Any,
        template: Mapping[str, Any] | None = None,
        thinking: Thinking = "auto",
    ) -> None:
        self.config, self.self_teacher, self._tokenizer = config, self_teacher, tokenizer
        self.gains, self.norms = TeacherGains(), BranchNorms()
        self.loss_config = SrpoConfig(
            clip_low=config.epsilon,
            clip_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            dual_clip=config.delta,
            beta=config.entropy_beta,
            importance_cap=config.importance_cap,
        )
        self._thinking: Thinking = thinking
        self._template = dict(template or {}) | (config.chat_template_kwargs or {})

    def routes(self, rows: ScoredRows) -> list[TeacherContext]:
        """Return the context of each row."""
        size, config = self.config.num_generations, self.config
        contexts: list[TeacherContext] = []
        for start in range(0, len(rows.row_scores), size):
            row_scores = rows.row_scores[start : start + size]
            feedback = [score.feedback if config.rubric_feedback else () for score in row_scores]
            # A row that cannot be sent has no teacher responses; the service got those of another.
            sent = next((r for r in rows.rollouts[start : start + size] if r.problem is None), None)
            external, teacher_score = _best(
                sent.teacher_responses if sent is not None else None, rows.teacher_scores[start]
            )
            if external is not None and self._is_too_short(external):
                external = teacher_score = None
            routes = route(
                [score.reward for score in row_scores],
                success=config.success_threshold,
                demonstration=config.demonstration_threshold,
                gap=config.demonstration_gap,
                truncated=[score.truncated for score in row_scores],
                too_short=[
                    row.problem is None and self._is_too_short(text_if_plain(row.completion))
                    for row in rows.rollouts[start : start + size]
                ],
                truncated_fails=config.truncated_fails,
                feedback=[bool(lines) for lines in feedback],
                teacher_score=teacher_score,
            )
            control = next(
                (
                    index
                    for index in range(size)
                    if routes.successes[index]
                    and routes.demonstrations[index] not in (None, TEACHER)
                ),
                None,
            )
            for index in range(size):
                source = routes.demonstrations[index]
                demonstration: Conversation | None
                if source is None:
                    demonstration = None
                elif source == TEACHER:
                    demonstration = external
                else:
                    demonstration = text_if_plain(rows.rollouts[start + source].completion)
                contexts.append(
                    TeacherContext(
                        self._is_routed(routes, index, feedback[index]),
                        demonstration,
                        feedback[index],
                        source == TEACHER,
                        routes.branches[index] is not Branch.UNSCORED
                        and not routes.successes[index],
                        index == control,
                    )
                )
        return contexts

    def _is_too_short(self, demonstration: Conversation) -> bool:
        minimum = self.config.min_demonstration_tokens
        if minimum == 0:
            return False
        text, _ = self._readable(demonstration)
        return len(self._ids(text or "")) < minimum

    def _is_routed(self, routes: Routes, index: int, feedback: Sequence[str]) -> bool:
        # SDPO teaches every scored rollout for which the self-teacher has something to read.
        if self.config.method == "sdpo":
            scored = routes.branches[index] is not Branch.UNSCORED
            return scored and (routes.demonstrations[index] is not None or bool(feedback))
        return routes.branches[index] is Branch.SDPO

    def prepare(
        self,
        batch: dict[str, Any],
        rows: ScoredRows,
        *,
        first: int,
        total: Callable[[Tensor], Tensor],
    ) -> Mapping[str, float]:
        """Add the self-teacher's part to a batch.

        With SDPO rows that are not routed leave the loss altogether. Returns metrics to log.

        Args:
            batch: TRL's batch with this process's rows; it is changed in place.
            rows: The rows of all processes.
            first: Index of this process's first row among them.
            total: Sums a tensor over all processes.
        """
        mask = student_token_mask(batch).bool()
        routed, failures, controls = torch.zeros(3, len(mask), dtype=torch.bool, device=mask.device)
        prompts: dict[int, Sequence[int]] = {}
        informed = external = failed = 0.0
        for index, context in enumerate(self.routes(rows)[first : first + len(mask)]):
            informed += context.demonstration is not None or bool(context.feedback)
            failed += context.failure
            # A row that is unscored or empty has no token to learn from.
            if (context.routed or context.control) and mask[index].any():
                demonstration, cut = self._readable(context.demonstration)
                ids = build_teacher_prompt(
                    self._tokens,
                    cut,
                    rows.rollouts[first + index].prompt,
                    demonstration,
                    context.feedback,
                    max_tokens=self.config.max_reprompt_length,
                )
                # `None`: nothing fits beside the task. Then the row is not routed.
                if ids is not None:
                    prompts[index] = ids
                    routed[index], controls[index] = context.routed, context.control
                    failures[index] = context.routed and context.failure
                    external += context.routed and context.external
        states = self._teacher_states(batch, prompts, total)
        entropy, log_probs = torch.zeros(2, *mask.shape, dtype=torch.float32, device=mask.device)
        for index, row_states in states.items():
            with torch.no_grad():
                log_probs[index, mask[index]], entropy[index, mask[index]] = token_log_probs(
                    row_states,
                    batch["completion_ids"][index, mask[index]],
                    self.self_teacher.head,
                    temperature=self.config.temperature,
                )
        routed_tokens = mask & routed.unsqueeze(1)
        # Controls were run to be measured only: they weigh nothing in the loss.
        entropy = torch.where(routed_tokens, entropy, 0.0)
        batch |= {
            "routed": routed,
            "failures": failures,
            "controls": controls,
            "teacher_entropy": entropy,
            "teacher_log_probs": log_probs,
            # One entry a row, because TRL shuffles and splits a batch row by row.
            "teacher_states": [
                states[index] if row else None for index, row in enumerate(routed.tolist())
            ],
        }
        if self.config.method == "sdpo":
            batch["completion_mask"] = batch["completion_mask"] * routed.unsqueeze(1)
        weights = (-self.config.entropy_beta * entropy[routed_tokens]).exp()
        sums = {
            "rows": float(len(mask)),
            "tokens": float(mask.sum()),
            "routed": float(routed.sum()),
            "routed_tokens": float(routed_tokens.sum()),
            "failed": failed,
            "informed": informed,
            "external": external,
            "entropy": float(entropy[routed_tokens].sum()),
            "weight": float(weights.sum()),
            "squared_weight": float(weights.square().sum()),
        }
        # Over all processes: every one must call `total`, with routed rows or without.
        totals = total(torch.tensor(list(sums.values()), device=mask.device))
        sums = dict(zip(sums, totals.tolist(), strict=True))
        metrics = {
            "distillation/routed_share": sums["routed"] / sums["rows"],
            "distillation/informed_share": sums["informed"] / sums["rows"],
            "distillation/failed_share": sums["failed"] / sums["rows"],
        }
        if self.config.teacher_demonstration:
            metrics["distillation/teacher_response_share"] = sums["external"] / sums["rows"]
        if sums["tokens"]:
            metrics["distillation/routed_token_share"] = sums["routed_tokens"] / sums["tokens"]
        if sums["routed_tokens"]:
            metrics["distillation/entropy_mean"] = sums["entropy"] / sums["routed_tokens"]
            metrics["distillation/weight_std"] = _relative_deviation(
                sums["routed_tokens"], sums["weight"], sums["squared_weight"]
            )
        if routed_tokens.any():
            metrics |= _quantiles("entropy", entropy[routed_tokens])
            weights = entropy_weights(entropy, routed_tokens, beta=self.config.entropy_beta)
            metrics |= _quantiles("weight", weights[routed_tokens])
        return metrics

    def weight_sums(self, batch: Mapping[str, Any]) -> Tensor:
        """Return `[Σ exp(-β H), count]` over the routed tokens of a prepared micro-batch."""
        return entropy_weight_sums(
            batch["teacher_entropy"], routed_token_mask(batch), beta=self.config.entropy_beta
        )

    def loss(
        self, batch: Mapping[str, Any], student: StudentStates, *, token_count: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `srpo_loss` of a micro-batch, and its metrics by the names of the log.

        Args:
            batch: A prepared micro-batch, with `weight_mean`, the optimiser step's.
            student: The student's forward pass on it.
            token_count: Tokens of the optimiser step over all processes.
        """
        mask, tokens = student_token_mask(batch).bool(), routed_token_mask(batch)
        states = student.states[tokens]
        teacher = [each for each in batch["teacher_states"] if each is not None]
        if teacher:
            divergence = divergences(
                states,
                torch.cat(teacher),
                student.head,
                self.self_teacher.head,
                alpha=self.config.distillation_alpha,
                top_k=self.config.distillation_top_k,
                temperature=self.config.temperature,
            )
        else:
            divergence = states.sum(-1)  # of no position, but part of the graph
        self.gains.add(batch, student.log_probs, mask)
        self.norms.watch(student.hidden, batch["routed"])
        old = batch.get("old_per_token_logps")
        loss, metrics = srpo_loss(
            SrpoInputs(
                log_probs=student.log_probs,
                # TRL leaves them out where the sampling policy is the current one.
                old_log_probs=student.log_probs.detach() if old is None else old,
                advantages=batch["advantages"],
                mask=mask,
                routed=batch["routed"],
                # From the routed tokens [N] back to [B, C].
                divergence=torch.zeros_like(student.log_probs).masked_scatter(
                    tokens, divergence.to(student.log_probs)
                ),
                entropy=batch["teacher_entropy"],
                sampler_weights=batch.get("importance_sampling_ratio"),
                token_count=token_count,
                weight_mean=batch["weight_mean"],
            ),
            self.loss_config,
        )
        return loss, {
            "entropy": student.entropies[mask].mean(),
            "clip_ratio/region_mean": metrics["clip_share"],
            "distillation/divergence": metrics["divergence"],
        }

    def step_metrics(
        self, device: torch.device, *, total: Callable[[Tensor], Tensor], loss_scale: float
    ) -> dict[str, float]:
        """Return the gradient norms and gains of an optimiser step, once its gradients exist.

        Args:
            device: The device of the sums, also where this process has none.
            total: Sums a tensor over all processes.
            loss_scale: What the loss was multiplied by before the backward pass.
        """
        norms = (total(self.norms.take(device)).sqrt() / loss_scale).tolist()
        gains = shares(GAINS, total(self.gains.take(device)), empty=math.nan)
        return dict(zip(NORMS, norms, strict=True)) | gains

    def _teacher_states(
        self,
        batch: Mapping[str, Any],
        prompts: Mapping[int, Sequence[int]],
        total: Callable[[Tensor], Tensor],
    ) -> dict[int, Tensor]:
        """Return the self-teacher's states [T, d] of each routed row's tokens."""
        size, row_states = self.config.per_device_train_batch_size, {}
        passes = own_passes = math.ceil(len(prompts) / size)
        if self.self_teacher.sharded:
            # The sum over processes is above 0 at each one's number; the last is the largest.
            numbers = torch.zeros(
                self.config.steps_per_generation + 1, device=batch["completion_ids"].device
            )
            numbers[own_passes] = 1
            passes = int(total(numbers).nonzero().max())
        lengths = batch["completion_mask"].sum(1).tolist()
        # Rows of similar length share a batch, which saves padding.
        indices = sorted(prompts, key=lambda index: len(prompts[index]) + lengths[index])
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            keep = max(lengths[index] for index in part)
            completion, mask = (
                batch[name][part, :keep] for name in ("completion_ids", "completion_mask")
            )
            width = max(len(prompts[index]) for index in part)
            # Padded on the left, so that the rollouts' tokens start in one column.
            ids = completion.new_full((len(part), width), self._tokenizer.pad_token_id)
            seen = torch.zeros_like(ids)
            for row, index in enumerate(part):
                ids[row, width - len(prompts[index]) :] = torch.tensor(
                    prompts[index], device=ids.device
                )
                seen[row, width - len(prompts[index]) :] = 1
            states = self.self_teacher.states(
                torch.cat([ids, completion], 1),
                torch.cat([seen, mask.to(seen)], 1),
                keep,
            )
            for row, index in enumerate(part):
                learnt = student_token_mask(batch)[index, :keep].bool()
                row_states[index] = _as_its_head_takes(states[row, learnt])
        for _ in range(own_passes, passes):
            # A sharded model's forward pass needs every process: this one has no row left.
            first = batch["completion_ids"][:1]
            self.self_teacher.states(first, torch.ones_like(first), 1)
        return row_states

    def _tokens(self, prompt: Prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            plain: list[int] = self._tokenizer(prompt)["input_ids"]
            return plain
        rendered = self._tokenizer.apply_chat_template(
            list(prompt),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self._template,
        )
        ids: list[int] = rendered["input_ids"]
        return ids

    def _readable(
        self, demonstration: Conversation | None
    ) -> tuple[str | None, Callable[[str, int], str]]:
        """Return a demonstration as text, and what shortens it to a number of tokens."""
        if demonstration is None:
            return None, self._cut
        if isinstance(demonstration, str):
            return judged_text(demonstration, self._thinking), self._cut
        messages = demonstration

        def cut(_text: str, keep: int) -> str:
            shorter = fitting(
                messages, keep, lambda text: len(self._ids(text)), thinking=self._thinking
            )
            return self._cut(shorter, keep)

        return readable(messages, thinking=self._thinking), cut

    def _cut(self, text: str, keep: int) -> str:
        shorter: str = self._tokenizer.decode(self._ids(text)[:keep])
        return shorter

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def student_token_mask(batch: Mapping[str, Any]) -> Tensor:
    """Return the mask [B, C] of tokens that the student wrote: no padding, no tool output."""
    mask: Tensor = batch["completion_mask"]
    return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]


def routed_token_mask(batch: Mapping[str, Any]) -> Tensor:
    """Return the mask [B, C] of the tokens that are learnt from the self-teacher."""
    routed: Tensor = batch["routed"]
    return student_token_mask(batch).bool() & routed.unsqueeze(1)


def _as_its_head_takes(states: Tensor) -> Tensor:
    """Return states in the precision to which autocast brings them before an output layer.

    The last norm makes them fp32 in any case; they would take twice the memory until the update.
    """
    device = states.device.type
    if not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))


def _quantiles(name: str, values: Tensor) -> dict[str, float]:
    """Return the 10th, 50th and 90th percentile of this process's tokens."""
    ordered = values.float().sort().values
    return {
        f"distillation/{name}_p{share}": float(ordered[(len(ordered) - 1) * share // 100])
        for share in (10, 50, 90)
    }


def _relative_deviation(count: float, total: float, squares: float) -> float:
    """Return the standard deviation of numbers divided by their mean."""
    mean = total / count
    return max(0.0, squares / count / mean**2 - 1) ** 0.5 if mean else 0.0


def _best(
    responses: Sequence[Conversation] | None, scores: Sequence[float | None]
) -> tuple[Conversation | None, float | None]:
    """Return the best teacher response and its score, if they were scored."""
    pairs = [
        (score, response)
        for response, score in zip(responses or (), scores, strict=False)
        if score is not None
    ]
    score, response = max(pairs, key=lambda pair: pair[0], default=(None, None))
    return None if response is None else text_if_plain(response), score
