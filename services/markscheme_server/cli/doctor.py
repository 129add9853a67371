"""``markscheme doctor``: one line a check, each with what to do when it fails; and what a training would cost."""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from markscheme.plan import GROUP, NAME, PlanError, Planner, TrainingPlan
from markscheme_server.app import make_judge
from markscheme_server.cli import estimate as costs
from markscheme_server.config import BUILTIN, DEFAULT, TEACHER, Settings
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import InductionTask, Judge, JudgeFailure, Response, VerifyTask
from markscheme_server.judge.gateway import SEE_DOCTOR
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.judge.probing import listed_models, probe_schema
from markscheme_server.store.maintenance.migrate import rls_enforced
from markscheme_server.store.probes import Probe
from markscheme_server.store.store import Store

QUESTION = VerifyTask(
    prompt=({"role": "user", "content": "Name a primary colour."},),
    criteria=(
        Criterion(
            "c1",
            "The answer names red, yellow or blue.",
            1,
            check={"kind": "contains", "texts": ["blue"]},
        ),
        Criterion(
            "c2",
            "The answer is longer than a thousand words.",
            1,
            check={"kind": "min_words", "value": 1000},
        ),
    ),
    responses=("Blue.",),
)
EXPECTED = {"c1": True, "c2": False}
CONTRAST = InductionTask(
    prompt=({"role": "user", "content": "Describe autumn in two sentences and name one fruit."},),
    teacher_responses=(
        "Leaves turn gold and fall while the evenings grow cold. Apples are ripe now.",
    ),
    student_responses=(Response("It is cold and it rains."),),
)


async def diagnose(settings: Settings, console: Console) -> tuple[bool, dict[str, float]]:
    """Print the checks; whether all passed, and how long each judge took to answer."""
    passed = await _database(settings, console)
    seconds: dict[str, float] = {}
    store = Store(settings.sqlalchemy_url)
    try:
        for name in (*settings.judges, *({BUILTIN} & set(settings.roles.values()))):
            try:
                judge = make_judge(settings, name, owner="doctor", secret=secrets.token_bytes(16))
            except ValueError as error:  # its key is not there
                passed = _say(console, False, str(error))
                continue
            try:
                took = await _examine(settings, judge, store, console)
            finally:
                await judge.aclose()
            if took is None:
                passed = False
            else:
                seconds[name] = took
    finally:
        await store.close()
    return passed, seconds


async def probe_judges(settings: Settings, console: Console) -> None:
    """Find out and store what form of structured output each judge's endpoints enforce."""
    store = Store(settings.sqlalchemy_url)
    try:
        for name, judge_settings in settings.judges.items():
            judge = make_judge(settings, name, owner="probe", secret=secrets.token_bytes(16))
            try:
                if isinstance(judge, OpenAIJudge) and name != TEACHER:
                    await _check_schema(
                        settings, judge, store, judge_settings.timeout_s, f"judge {name}", console
                    )
            finally:
                await judge.aclose()
    finally:
        await store.close()


async def _database(settings: Settings, console: Console) -> bool:
    store = Store(settings.sqlalchemy_url)
    try:
        await store.database.ping()
        walled = await rls_enforced(store.database)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return _say(
            console,
            False,
            f"database: no answer ({type(error).__name__}); check MARKSCHEME_DATABASE_URL",
        )
    finally:
        await store.close()
    _say(console, True, f"database: {store.database.engine.dialect.name} answers")
    if walled:
        return _say(
            console,
            True,
            "teams: row-level security holds for the service's role, behind its own filters",
        )
    if settings.is_sqlite:
        console.print(
            "        teams: kept apart by the service's own filters; SQLite has no row-level security behind "
            "them",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    else:
        _warn(
            console,
            "teams: row-level security does not hold, since the service's role is a superuser or has "
            "BYPASSRLS: keep this role for MARKSCHEME_MIGRATION_URL and name another one in "
            "MARKSCHEME_DATABASE_URL; 'markscheme migrate' makes it",
        )
    return True


async def _examine(
    settings: Settings, judge: Judge, store: Store, console: Console
) -> float | None:
    """Ask a judge a small question for each role that it plays.

    The seconds that a verdict took; ``None`` when something failed.
    """
    what = _described(settings, judge.name)
    roles = [role for role, name in settings.roles.items() if name == judge.name]
    if not isinstance(judge, OpenAIJudge):
        seconds = await _verifies(judge, 5.0, what, console)
        console.print(
            "   builtin is rules, not a language model: it decides only criteria that carry a check; "
            "set MARKSCHEME_JUDGE_BASE_URL and _MODEL for a model",
            markup=False,
            soft_wrap=True,
        )
        return seconds
    timeout_s = settings.judges[judge.name].timeout_s
    await _check_models(judge, what, console)
    if roles == [TEACHER]:
        return await _responds(judge, timeout_s, what, console)
    if not await _check_schema(settings, judge, store, timeout_s, what, console):
        return None
    seconds = await _verifies(judge, timeout_s, what, console)
    _say_learnt(judge, what, console)
    if (
        seconds is not None
        and "rubricator" in roles
        and not await _induces(judge, timeout_s, what, console)
    ):
        return None
    return seconds


async def _verifies(judge: Judge, timeout_s: float, what: str, console: Console) -> float | None:
    """Whether it decides an easy question right; the seconds that took."""
    started = time.perf_counter()
    try:
        answer = await judge.verify(QUESTION, _context(timeout_s))
    except JudgeFailure as failure:
        _say_failure(console, what, failure)
        return None
    seconds = time.perf_counter() - started
    decided = {key: decision.met for key, decision in answer.decisions[0].items()}
    if decided != EXPECTED:
        _say(
            console,
            False,
            f"{what}: it answers, but got an easy question wrong; use a stronger model",
        )
        return None
    _say(console, True, f"{what}: answers in {seconds:.2f} s, and right")
    return seconds


async def _induces(judge: Judge, timeout_s: float, what: str, console: Console) -> bool:
    """Whether it writes a rubric that can be used."""
    try:
        made = await judge.induce(CONTRAST, _context(timeout_s))
    except JudgeFailure as failure:
        _say_failure(console, f"{what}: asked for a rubric", failure)
        return False
    return _say(console, True, f"{what}: writes a rubric of {len(made.criteria)} criteria")


async def _responds(
    judge: OpenAIJudge, timeout_s: float, what: str, console: Console
) -> float | None:
    """Whether a teacher responds to a prompt; the seconds that took."""
    started = time.perf_counter()
    try:
        await judge.respond(QUESTION.prompt, _context(timeout_s))
    except JudgeFailure as failure:
        _say_failure(console, what, failure)
        return None
    seconds = time.perf_counter() - started
    _say(console, True, f"{what}: responds in {seconds:.2f} s")
    _say_learnt(judge, what, console)
    return seconds


async def _check_schema(
    settings: Settings,
    judge: OpenAIJudge,
    store: Store,
    timeout_s: float,
    what: str,
    console: Console,
) -> bool:
    """Find out, where the setting is 'auto', what form of structured output each endpoint enforces, and store it."""
    if settings.judges[judge.name].structured != "auto":
        return _say(
            console,
            True,
            f"{what}: structured output: {settings.judges[judge.name].structured}, as it is set",
        )
    for endpoint in judge.gateway.endpoints:
        try:
            support = await probe_schema(judge, endpoint, _context(timeout_s))
        except JudgeFailure as failure:
            where = f" at {endpoint.origin}" if len(judge.gateway.endpoints) > 1 else ""
            _say_failure(console, what + where, failure)
            return False
        endpoint.capabilities.first = support.form
        _say(console, True, f"{what}: structured output: {support.words}")
        try:
            await store.probes.save(
                Probe(endpoint.origin, judge.model, support.json_schema, support.form)
            )
        except (SQLAlchemyError, OSError) as error:
            _warn(
                console,
                f"{what}: this could not be stored for the service to read ({type(error).__name__}); run "
                "'markscheme migrate' first",
            )
    return True


async def _check_models(judge: OpenAIJudge, what: str, console: Console) -> None:
    """Warn of a model that the endpoint does not list. Many endpoints list none."""
    for endpoint in judge.gateway.endpoints:
        models = await listed_models(endpoint)
        if models and judge.model not in models:
            near = get_close_matches(judge.model, models, n=3) or sorted(models)[:3]
            _warn(
                console,
                f"{what}: {endpoint.origin} does not list this model; it lists {', '.join(near)}"
                + (" and others" if len(models) > len(near) else ""),
            )


def _context(timeout_s: float) -> CallContext:
    return CallContext(Deadline(asyncio.get_running_loop().time() + timeout_s))


def _say_learnt(judge: OpenAIJudge, what: str, console: Console) -> None:
    """What the endpoints refused and are asked without."""
    for endpoint in judge.gateway.endpoints:
        known = endpoint.capabilities
        learnt = [f"{name} is not sent" for name in sorted(known.left_out)]
        if known.length_name != "max_tokens":
            learnt.append(f"{known.length_name} is sent in place of max_tokens")
        if known.most_tokens is not None:
            learnt.append(f"a reply may have {known.most_tokens:,} tokens")
        if known.form != known.best:
            learnt.append(f"structured output steps down to {known.form}")
        if learnt:
            _warn(
                console, f"{what}: learnt from refusals of {endpoint.origin}: {'; '.join(learnt)}"
            )


def _say_failure(console: Console, what: str, failure: JudgeFailure) -> None:
    """The reason in our words, and the endpoint's own sentence: this is the operator's terminal."""
    words = str(failure).removesuffix(SEE_DOCTOR)
    _say(console, False, f"{what}: {words} ({failure.reason})")
    if failure.detail:
        console.print(
            f"        it said: {failure.detail}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _warn(console: Console, words: str) -> None:
    console.print(f"  warn  {words}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _described(settings: Settings, name: str) -> str:
    """``judge strong (gpt-x; rubricator, verifier)``."""
    roles = (
        ", ".join(role for role, of in settings.roles.items() if of == name)
        or "when asked for by name"
    )
    model = f"{settings.judges[name].model}; " if name in settings.judges else ""
    return f"judge {name} ({model}{roles})"


def _say(console: Console, passed: bool, words: str) -> bool:
    console.print(
        f"{'ok' if passed else 'FAILED':>6}  {words}",
        style="" if passed else "red",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return passed


def estimate_training(
    config: Path,
    overrides: Sequence[str],
    settings: Settings,
    seconds: Mapping[str, float],
    console: Console,
) -> bool:
    """Print what the judges of a training configuration come to; false when it cannot be said."""
    try:
        with console.status(
            f"reading {config}"
        ):  # the trainer's libraries take some seconds to load
            plan = _planner()(config, overrides)
        estimate = costs.estimate(plan, settings, seconds)
    except (PlanError, costs.UnknownJudge) as error:
        return _say(console, False, f"{config}: {error}")
    _show(config, plan, estimate, settings, console)
    return True


def _planner() -> Planner:
    """The installed trainer's function. Raises :class:`PlanError`."""
    found = entry_points(group=GROUP, name=NAME)
    try:
        planner: Planner = next(iter(found)).load()
    except (StopIteration, ImportError) as error:
        raise PlanError(
            "reading a training configuration needs the train extra: "
            "pip install 'markscheme[train]'"
        ) from error
    return planner


def _show(
    config: Path, plan: TrainingPlan, estimate: costs.Estimate, settings: Settings, console: Console
) -> None:
    def line(words: str) -> None:
        console.print(words, markup=False, highlight=False, soft_wrap=True)

    line(
        f"\n{config}: {plan.steps:,} steps, {plan.groups:,} groups of {plan.rollouts_per_group} = "
        f"{plan.rollouts:,} rollouts, over {plan.prompts:,} prompts; reuse {plan.reuse}, verify {plan.verify}"
    )
    if not any(load.calls for load in estimate.loads):
        line("no judge calls, and nothing to pay: the builtin judge is rules")
        return
    table = Table("role", "judge", box=None, pad_edge=False)
    for heading in ("calls", "prompt tokens", "completion tokens", "cost"):
        table.add_column(heading, justify="right")
    for load in estimate.loads:
        table.add_row(
            load.role,
            load.judge,
            f"{load.calls:,}",
            f"{load.prompt_tokens:,}",
            f"{load.completion_tokens:,}",
            "?" if load.cost is None else f"{load.cost:,.2f}",
        )
    table.add_row(
        "both",
        "",
        *(
            f"{sum(numbers):,}"
            for numbers in zip(
                *(
                    (load.calls, load.prompt_tokens, load.completion_tokens)
                    for load in estimate.loads
                ),
                strict=True,
            )
        ),
        "?" if estimate.cost is None else f"{estimate.cost:,.2f}",
    )
    console.print(table)
    for name in estimate.unpriced:
        line(
            f"no prices for {name}: set price_input and price_output of its table in markscheme.toml"
            + (" (or MARKSCHEME_JUDGE_PRICE_INPUT and _OUTPUT)" if name == DEFAULT else "")
            + ", per million tokens"
        )
    for wait in estimate.waits:
        line(f"{wait.judge}: at least {_hours(wait.hours)} at {wait.limit}")
    line("assumes")
    for assumption in _assumptions(plan, settings):
        line(f"  {assumption}")


def _assumptions(plan: TrainingPlan, settings: Settings) -> list[str]:
    renewed = {
        "always_new": "a rubric for every visit of a prompt",
        "frozen": "no rubric is made",
        "if_fresh": f"a rubric serves {settings.reuse_max_uses} groups (it is renewed sooner when it no longer "
        "separates)",
    }[plan.reuse]
    return [
        "one training process: with several, multiply",
        f"prompts of {plan.prompt_characters:,} characters, {plan.teacher_responses} teacher responses of "
        f"{plan.teacher_characters:,}, as in the data; 4 characters a token",
        f"responses of {plan.response_tokens:,} tokens: the most there may be",
        f"{costs.CRITERIA} criteria a rubric; {renewed}",
        "no retries, no thinking tokens, no prefix caching; nothing taken off for criteria with a check or for "
        "verdicts that are stored",
        "calls as long as that of the small question above",
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.0f} min"
