"""SDPO and SRPO beside TRL's GRPO: routing, the self-teacher's forward pass, its loss.

The self-teacher runs once per generated batch, on routed rows only. Until the update only its
hidden states are kept, a few thousand numbers a token instead of a vocabulary, and the entropy
weights, whose mean is that of the whole optimiser step over all processes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from markscheme.integrations.conversation import Conversation, text_if_plain
from markscheme_train.config import TrainConfig
from markscheme_train.demonstration import fitting, readable
from markscheme_train.diagnostics import TeacherComparison
from markscheme_train.distillation import Head, divergences, token_log_probs
from markscheme_train.losses import capped_importance, entropy_weight_sums, entropy_weights
from markscheme_train.reprompt import Prompt, build_teacher_prompt, without_thinking
from markscheme_train.reward import Row, RowScore
from markscheme_train.routing import TEACHER, Branch, Routes, route
from markscheme_train.self_teacher import SelfTeacher


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
class StudentStates:
    """The student's forward pass.

    Attributes:
        log_probs: Of the sampled tokens [B, C].
        states: Hidden states [B, C, d].
        head: Maps states to logits.
        hidden: The model's last hidden states as it returned them, one tensor a micro-batch, to
            watch their gradients.
    """

    log_probs: Tensor
    states: Tensor
    head: Head
    hidden: Sequence[Tensor]


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
    """

    def __init__(
        self,
        config: TrainConfig,
        self_teacher: SelfTeacher,
        tokenizer: Any,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.self_teacher, self._tokenizer = config, self_teacher, tokenizer
        self.comparison = TeacherComparison()
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
        return len(self._ids(without_thinking(text or ""))) < minimum

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
        """Add the self-teacher's part to a batch, and take routed rows out of GRPO's loss.

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
        states = self._teacher_states(batch, prompts)
        entropy, log_probs = torch.zeros(2, *mask.shape, dtype=torch.float32, device=mask.device)
        for index, row_states in states.items():
            with torch.no_grad():
                log_probs[index, mask[index]], entropy[index, mask[index]] = token_log_probs(
                    row_states,
                    batch["completion_ids"][index, mask[index]],
                    self.self_teacher.head,
                    temperature=self.config.temperature,
                )
        batch |= {"teacher_log_probs": log_probs, "failures": failures, "controls": controls}
        # The mean weight is over all processes: every rank must call `total`, routed rows or not.
        routed_tokens = mask & routed.unsqueeze(1)
        weighed, count = total(
            entropy_weight_sums(entropy, routed_tokens, beta=self.config.entropy_beta)
        )
        batch["routed"] = routed
        batch["distillation_weights"] = entropy_weights(
            entropy, routed_tokens, beta=self.config.entropy_beta, mean=weighed / count.clamp(min=1)
        )
        # One entry a row, because TRL shuffles and splits a batch row by row.
        batch["teacher_states"] = [
            states[index] if row else None for index, row in enumerate(routed.tolist())
        ]
        # An advantage of 0 takes a row out of TRL's surrogate but leaves it in the token count.
        batch["advantages"] = batch["advantages"].masked_fill(routed, 0.0)
        if self.config.method == "sdpo":
            batch["completion_mask"] = batch["completion_mask"] * routed.unsqueeze(1)
        sums = {
            "rows": float(len(mask)),
            "tokens": float(mask.sum()),
            "routed": float(routed.sum()),
            "failed": failed,
            "informed": informed,
            "external": external,
            "entropy": float(entropy[routed_tokens].sum()),
            "squared_weight": float(batch["distillation_weights"].square().sum()),
        }
        totals = total(torch.tensor(list(sums.values()), dtype=torch.float64, device=mask.device))
        sums = dict(zip(sums, totals.tolist(), strict=True))
        metrics = {
            "distillation/routed_share": sums["routed"] / sums["rows"],
            "distillation/informed_share": sums["informed"] / sums["rows"],
            "distillation/failed_share": sums["failed"] / sums["rows"],
        }
        if self.config.teacher_demonstration:
            metrics["distillation/teacher_response_share"] = sums["external"] / sums["rows"]
        if sums["tokens"]:
            metrics["distillation/routed_token_share"] = float(count) / sums["tokens"]
        if count:
            metrics["distillation/entropy_mean"] = sums["entropy"] / float(count)
            # The weights' mean is 1.
            variance = sums["squared_weight"] / float(count) - 1
            metrics["distillation/weight_std"] = max(0.0, variance) ** 0.5
        if routed_tokens.any():
            metrics |= _quantiles("entropy", entropy[routed_tokens])
            metrics |= _quantiles("weight", batch["distillation_weights"][routed_tokens])
        return metrics

    def distillation_loss_sum(self, batch: Mapping[str, Any], student: StudentStates) -> Tensor:
        """Return `Σ w · min(ρ, cap) · divergence` over the routed tokens of a micro-batch.

        It is their part of the joint loss before the division by the tokens of both branches.
        """
        indices = batch["routed"].nonzero().flatten()
        if not len(indices):
            return torch.zeros((), device=student.log_probs.device)
        mask = student_token_mask(batch)[indices].bool()
        teacher_states = torch.cat([batch["teacher_states"][int(index)] for index in indices])
        divergence = divergences(
            student.states[indices][mask],
            teacher_states,
            student.head,
            self.self_teacher.head,
            alpha=self.config.distillation_alpha,
            top_k=self.config.distillation_top_k,
            temperature=self.config.temperature,
        )
        self.comparison.add_divergence(divergence)
        own = student.log_probs[indices]
        old = (
            batch["old_per_token_logps"][indices]
            # TRL leaves them out where the sampling policy is the current one: the ratio is then 1.
            if batch.get("old_per_token_logps") is not None
            else own.detach()
        )
        weights: Tensor = batch["distillation_weights"][indices] * capped_importance(
            own, old, self.config.importance_cap
        )
        if batch.get("importance_sampling_ratio") is not None:
            weights = weights * batch["importance_sampling_ratio"][indices]
        return (weights[mask] * divergence).sum()

    def _teacher_states(
        self, batch: Mapping[str, Any], prompts: Mapping[int, Sequence[int]]
    ) -> dict[int, Tensor]:
        """Return the self-teacher's states [T, d] of each routed row's tokens."""
        size, row_states = self.config.per_device_train_batch_size, {}
        # Rows of similar length share a batch, which saves padding.
        indices = sorted(prompts, key=lambda index: len(prompts[index]))
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            completion, mask = batch["completion_ids"][part], batch["completion_mask"][part]
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
                completion.shape[1],
            )
            for row, index in enumerate(part):
                row_states[index] = states[row, student_token_mask(batch)[index].bool()].clone()
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
        if demonstration is None or isinstance(demonstration, str):
            return demonstration, self._cut
        messages = demonstration

        def cut(_text: str, keep: int) -> str:
            shorter = fitting(messages, keep, lambda text: len(self._ids(text)))
            return self._cut(without_thinking(shorter), keep)

        return readable(messages), cut

    def _cut(self, text: str, keep: int) -> str:
        shorter: str = self._tokenizer.decode(self._ids(text)[:keep])
        return shorter

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class BranchNorms:
    """Gradient norms of each branch at the student's last hidden states.

    A row belongs to one branch, so there the two can be told apart for free; in the gradient of the
    weights they are summed.
    """

    def __init__(self) -> None:
        self._squares: list[Tensor] = []

    def watch(self, hidden: Sequence[Tensor], routed: Tensor) -> None:
        """Record the gradients of hidden states [b, …] that together hold the `routed` rows."""
        for states, rows in zip(
            hidden, torch.split(routed, [len(states) for states in hidden]), strict=True
        ):
            states.register_hook(partial(self._note, rows))  # type: ignore[no-untyped-call]

    def _note(self, routed: Tensor, gradient: Tensor) -> None:
        squares = torch.linalg.vector_norm(gradient, dim=(1, 2), dtype=torch.float32).square()
        self._squares.append(torch.stack([squares[~routed].sum(), squares[routed].sum()]))

    def take(self, device: torch.device) -> Tensor:
        """Return squared norms `[policy, distillation]` since the last call."""
        squares, self._squares = self._squares, []
        return torch.stack(squares).sum(0) if squares else torch.zeros(2, device=device)


def student_token_mask(batch: Mapping[str, Any]) -> Tensor:
    """Return the mask [B, C] of tokens that the student wrote: no padding, no tool output."""
    mask: Tensor = batch["completion_mask"]
    return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]


def _quantiles(name: str, values: Tensor) -> dict[str, float]:
    """Return the 10th, 50th and 90th percentile of this process's tokens."""
    ordered = values.float().sort().values
    return {
        f"distillation/{name}_p{share}": float(ordered[(len(ordered) - 1) * share // 100])
        for share in (10, 50, 90)
    }


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
