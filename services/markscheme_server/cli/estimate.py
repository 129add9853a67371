"""Estimate the judge calls, tokens and cost of a training run before it is started.

An upper bound where possible (every response of the greatest length, nothing answered from stored
verdicts), a stated guess elsewhere. Prompts are built with the real templates from filler of the
expected lengths.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from markscheme.names import did_you_mean
from markscheme.plan import TrainingPlan
from markscheme_server.config import Settings
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.trajectory import CHARACTERS_PER_TOKEN
from markscheme_server.domain.usage import NANO
from markscheme_server.judge import prompts
from markscheme_server.judge.base import InductionTask, StudentResponse, VerifyTask
from markscheme_server.judge_settings import BUILTIN, SHADOW, JudgeSettings

Role = Literal["rubricator", "verifier"]
ROLES: tuple[Role, ...] = ("rubricator", "verifier")
Asked = Role | Literal["second judge", "asked again"]
"""What a judge is asked for: a role, or the questions that no reward depends on."""
CRITERIA = 8
"""Criteria in a rubric; rubricators are asked for 4 to 12."""
CRITERION_CHARACTERS = 100
EVIDENCE_CHARACTERS = 80
JSON_CHARACTERS_PER_TOKEN = 3
"""Fewer than in prose, because of brackets and short words."""


class UnknownJudge(Exception):
    """The plan names a judge that is not in the settings."""


@dataclass(frozen=True, slots=True)
class Load:
    """Calls of one kind over the whole run. `cost` is in USD; `None` without prices."""

    role: Asked
    judge: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """The least time that a limit of a judge allows for its calls."""

    judge: str
    limit: str
    hours: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The calls of both roles and the limits on them.

    `cost` is in USD for both; `None` when a judge has calls and no prices. `shadow`: what the
    second judge and re-asks take, which is not part of it. No reward waits for those calls.
    """

    loads: tuple[Load, ...]
    waits: tuple[Wait, ...]
    cost: float | None
    shadow: tuple[Load, ...]

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Judges that have calls and no prices."""
        return tuple(
            dict.fromkeys(
                load.judge
                for load in (*self.loads, *self.shadow)
                if load.calls and load.cost is None
            )
        )


def estimate(plan: TrainingPlan, settings: Settings, seconds: Mapping[str, float]) -> Estimate:
    """Estimate a run.

    Args:
        plan: The size of the run.
        settings: Judges, prices and limits.
        seconds: How long one call of a judge takes, for those of which it is known.

    Raises:
        UnknownJudge: The plan names a judge that is not in the settings.
    """
    loads = tuple(_load(plan, role, _judge(plan, role, settings), settings) for role in ROLES)
    cost = (
        None
        if any(load.calls and load.cost is None for load in loads)
        else sum(load.cost or 0 for load in loads)
    )
    names = dict.fromkeys(load.judge for load in loads if load.calls)
    waits = tuple(
        wait
        for name in names
        for wait in _waits(
            plan,
            settings.judges[name],
            name,
            [load for load in loads if load.judge == name],
            seconds.get(name),
        )
    )
    return Estimate(loads, waits, cost, tuple(_shadow(plan, settings)))


def inductions(plan: TrainingPlan, max_uses: int) -> int:
    """Count the rubrics that a run induces.

    One for each visit of a prompt (`always_new`), or one for each prompt and again after every
    `max_uses` visits (`if_fresh`). The latter is a lower bound: a rubric that no longer separates
    the rollouts is replaced sooner.
    """
    if plan.reuse == "frozen":
        return 0
    if plan.reuse == "always_new":
        return plan.groups
    visited = min(plan.prompts, plan.groups)
    visits, once_more = divmod(plan.groups, visited)
    return once_more * math.ceil((visits + 1) / max_uses) + (visited - once_more) * math.ceil(
        visits / max_uses
    )


def _judge(plan: TrainingPlan, role: Role, settings: Settings) -> str:
    name = plan.judge or settings.roles[role]
    if name != BUILTIN and name not in settings.judges:
        raise UnknownJudge(
            f"the training names the judge {name!r}, which does not exist: there are "
            f"{', '.join([BUILTIN, *settings.judges])}"
            f"{did_you_mean(name, [BUILTIN, *settings.judges])}"
        )
    return name


def _load(plan: TrainingPlan, role: Role, name: str, settings: Settings) -> Load:
    if name == BUILTIN:
        return Load(role, name, 0, 0, 0, 0.0)
    if role == "verifier":
        return _verifications(role, name, plan, settings, _pools(plan))
    judge = settings.judges[name]
    calls = inductions(plan, settings.reuse_max_uses)
    return _priced(
        role, name, judge, calls, calls * _induction_tokens(plan, judge), calls * _rubric_tokens()
    )


def _shadow(plan: TrainingPlan, settings: Settings) -> Iterator[Load]:
    """Yield what the second judge and the verifier's re-asks take, as far as a share is set."""
    verifier, second = _judge(plan, "verifier", settings), settings.roles.get(SHADOW)
    pools = _pools(plan)
    if settings.shadow_share and second is not None and second != verifier:
        asked = math.ceil(pools * settings.shadow_share)
        yield _verifications("second judge", second, plan, settings, asked)
    if settings.reask_share and verifier != BUILTIN:
        asked = math.ceil(pools * settings.reask_share)
        yield _verifications("asked again", verifier, plan, settings, asked)


def _pools(plan: TrainingPlan) -> int:
    """Count what a verifier is asked about at once: groups, or single rollouts."""
    if plan.verify == "group":
        return plan.groups + plan.evaluation_groups
    return plan.rollouts + plan.evaluation_rollouts


def _verifications(
    role: Asked, name: str, plan: TrainingPlan, settings: Settings, pools: int
) -> Load:
    judge = settings.judges[name]
    parts = _parts(judge)
    return _priced(
        role,
        name,
        judge,
        pools * len(parts),
        pools * sum(_verification_tokens(plan, judge, criteria) for criteria in parts),
        pools * sum(_verdict_tokens(plan, judge, criteria) for criteria in parts),
    )


def _priced(
    role: Asked,
    name: str,
    judge: JudgeSettings,
    calls: int,
    prompt_tokens: int,
    completion_tokens: int,
) -> Load:
    cost = judge.cost(prompt_tokens, 0, completion_tokens) / NANO if judge.priced else None
    return Load(role, name, calls, prompt_tokens, completion_tokens, cost)


def _parts(judge: JudgeSettings) -> list[int]:
    """Return the number of criteria in each verifier call for one rubric."""
    most = judge.max_criteria or CRITERIA
    return [min(most, CRITERIA - start) for start in range(0, CRITERIA, most)]


def _secrets() -> prompts.PromptSecrets:
    return prompts.PromptSecrets(b"filler")


def _filler(characters: int) -> str:
    return "x" * characters


def _material(
    plan: TrainingPlan,
) -> tuple[tuple[dict[str, str], ...], tuple[str, ...], tuple[str, ...]]:
    """Return a prompt, its teacher responses and a group's responses, of the expected lengths."""
    response = _filler(plan.response_tokens * CHARACTERS_PER_TOKEN)
    return (
        ({"role": "user", "content": _filler(plan.prompt_characters)},),
        (_filler(plan.teacher_characters),) * plan.teacher_responses,
        (response,) * plan.rollouts_per_group,
    )


def _induction_tokens(plan: TrainingPlan, judge: JudgeSettings) -> int:
    prompt, teachers, responses = _material(plan)
    task = InductionTask(prompt, teachers, tuple(StudentResponse(text) for text in responses))
    return _tokens(
        prompts.rubricator_prompt(task, _secrets(), max_tokens=judge.max_response_tokens)
    )


def _verification_tokens(plan: TrainingPlan, judge: JudgeSettings, criteria: int) -> int:
    prompt, teachers, responses = _material(plan)
    pool = plan.verify == "group"
    task = VerifyTask(
        prompt,
        tuple(Criterion(f"c{i}", _filler(CRITERION_CHARACTERS), 1) for i in range(1, criteria + 1)),
        responses + teachers if pool else responses[:1],
        plan.verify,
    )
    schema = prompts.verdict_schema(pool=pool, evidence=judge.evidence, nonce=judge.hardening)
    nonce = _filler(16)
    return _tokens(
        prompts.verifier_prompt(
            task,
            prompts.number_criteria(task.criteria),
            schema,
            _secrets(),
            max_tokens=judge.max_response_tokens,
            nonce=nonce if judge.hardening else None,
            canary=(f"c{criteria + 1}", f"The answer contains the string {nonce}.")
            if judge.hardening
            else None,
        )
    )


def _verdict_tokens(plan: TrainingPlan, judge: JudgeSettings, criteria: int) -> int:
    verdict = {"id": "c10", "met": False} | (
        {"evidence": _filler(EVIDENCE_CHARACTERS)} if judge.evidence else {}
    )
    texts = plan.rollouts_per_group + plan.teacher_responses if plan.verify == "group" else 1
    return _json_tokens({"verdicts": [verdict] * (criteria + judge.hardening)}) * texts


def _rubric_tokens() -> int:
    return _json_tokens(
        {
            "criteria": [
                {
                    "criterion": _filler(CRITERION_CHARACTERS),
                    "category": "observable_quality",
                    "points": 2,
                }
            ]
            * CRITERIA
        }
    )


def _tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _json_tokens(value: object) -> int:
    return math.ceil(len(json.dumps(value)) / JSON_CHARACTERS_PER_TOKEN)


def _waits(
    plan: TrainingPlan, judge: JudgeSettings, name: str, loads: list[Load], call_s: float | None
) -> list[Wait]:
    calls = sum(load.calls for load in loads)
    tokens = sum(load.prompt_tokens + load.completion_tokens for load in loads)
    waits = []
    if judge.rpm:
        waits.append(Wait(name, f"{judge.rpm} calls a minute", calls / judge.rpm / 60))
    if judge.tpm:
        waits.append(Wait(name, f"{judge.tpm:,} tokens a minute", tokens / judge.tpm / 60))
    if call_s is not None:
        # Within a batch one role follows the other, and a batch starts when the last is trained on.
        rounds = sum(
            math.ceil(load.calls / plan.batches / judge.concurrency) for load in loads if load.calls
        )
        waits.append(
            Wait(
                name,
                f"{judge.concurrency} at a time, {call_s:.2f} s each",
                rounds * plan.batches * call_s / 3600,
            )
        )
    return waits
