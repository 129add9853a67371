"""Check the database and each judge; one line a check, each failure with what to do."""

import asyncio
import secrets
import time
from difflib import get_close_matches

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server.app import make_judge
from markscheme_server.cli.common import NO_DATABASE, name_database
from markscheme_server.config import Settings
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import (
    InductionTask,
    Judge,
    JudgeFailure,
    StudentResponse,
    VerifyTask,
)
from markscheme_server.judge.failures import SEE_DOCTOR
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.judge.probing import listed_models, probe_schema
from markscheme_server.judge_settings import BUILTIN, TEACHER
from markscheme_server.store.engine.database import DatabaseMissing
from markscheme_server.store.maintenance.migrate import find_revision, rls_enforced
from markscheme_server.store.probes import Probe
from markscheme_server.store.store import Store

VERIFY_TASK = VerifyTask(
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
EXPECTED_VERDICTS = {"c1": True, "c2": False}
INDUCTION_TASK = InductionTask(
    prompt=({"role": "user", "content": "Describe autumn in two sentences and name one fruit."},),
    teacher_responses=(
        "Leaves turn gold and fall while the evenings grow cold. Apples are ripe now.",
    ),
    student_responses=(StudentResponse("It is cold and it rains."),),
)
BUILTIN_TIMEOUT_S = 5.0


class Report:
    """Prints checks to a console and remembers whether one failed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.passed = True

    def ok(self, words: str) -> None:
        """Print a check that passed."""
        self._print(f"    ok  {words}")

    def fail(self, words: str) -> None:
        """Print a check that failed."""
        self.passed = False
        self._print(f"FAILED  {words}", style="red")

    def fail_judge(self, what: str, failure: JudgeFailure) -> None:
        """Print a judge's failure, with the endpoint's own words: only the operator sees them."""
        self.fail(f"{what}: {str(failure).removesuffix(SEE_DOCTOR)} ({failure.reason})")
        if failure.detail:
            self._print(f"        it said: {failure.detail}", style="red")

    def warn(self, words: str) -> None:
        """Print what may be wrong."""
        self._print(f"  warn  {words}", style="yellow")

    def note(self, words: str) -> None:
        """Print what is no check."""
        self._print(f"        {words}")

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


async def diagnose(settings: Settings, console: Console) -> tuple[bool, dict[str, float]]:
    """Check everything.

    Returns:
        Whether all checks passed, and the seconds that one answer of each judge took.
    """
    report = Report(console)
    store = await _open_database(settings, report)
    seconds: dict[str, float] = {}
    try:
        for name in (*settings.judges, *({BUILTIN} & set(settings.roles.values()))):
            try:
                judge = make_judge(settings, name, owner="doctor", secret=secrets.token_bytes(16))
            except ValueError as error:  # the variable of its key is not set
                report.fail(str(error))
                continue
            try:
                took = await _check_judge(settings, judge, store, report)
            finally:
                await judge.aclose()
            if took is not None:
                seconds[name] = took
    finally:
        if store is not None:
            await store.close()
    return report.passed, seconds


async def probe_judges(settings: Settings, console: Console) -> None:
    """Find out and store which structured output each judge's endpoints enforce."""
    report = Report(console)
    store = Store(settings.sqlalchemy_url)
    try:
        for name in settings.judges:
            judge = make_judge(settings, name, owner="probe", secret=secrets.token_bytes(16))
            try:
                if isinstance(judge, OpenAIJudge) and name != TEACHER:
                    await _check_schema(settings, judge, store, f"judge {name}", report)
            finally:
                await judge.aclose()
    finally:
        await store.close()


async def _open_database(settings: Settings, report: Report) -> Store | None:
    """Check the database; return its store, or `None` where there is none to use."""
    name = name_database(settings)
    try:
        revision = await find_revision(settings.sqlalchemy_url)
        store = Store(settings.sqlalchemy_url)
        enforced = await rls_enforced(store.database)
    except DatabaseMissing:
        report.warn(f"database: there is none yet at {name}; {NO_DATABASE}")
        return None
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        report.fail(
            f"database: {name} does not answer ({type(error).__name__}); check "
            "MARKSCHEME_DATABASE_URL"
        )
        return None
    if revision is None:
        report.warn(f"database: {name} answers, and has no tables of Markscheme; {NO_DATABASE}")
    else:
        report.ok(f"database: {name} answers")
    if enforced:
        report.ok("teams: row-level security is enforced, besides the service's own filters")
    elif settings.is_sqlite:
        report.note("teams: the service's own filters; SQLite has no row-level security")
    else:
        report.warn(
            "teams: row-level security is not enforced, because the service's role is a superuser "
            "or has BYPASSRLS: keep this role for MARKSCHEME_MIGRATION_URL and name another one in "
            "MARKSCHEME_DATABASE_URL; 'markscheme migrate' creates it"
        )
    return store


async def _check_judge(
    settings: Settings, judge: Judge, store: Store | None, report: Report
) -> float | None:
    """Ask a judge a small question for each of its roles.

    Returns:
        The seconds that a verdict (or a teacher's response) took; `None` when a check failed.
    """
    what = _describe(settings, judge.name)
    roles = [role for role, name in settings.roles.items() if name == judge.name]
    if not isinstance(judge, OpenAIJudge):
        seconds = await _check_verdict(judge, BUILTIN_TIMEOUT_S, what, report)
        report.note(
            "builtin is rules, not a language model: it decides only criteria that carry a check; "
            "set MARKSCHEME_JUDGE_BASE_URL and _MODEL for a model"
        )
        return seconds
    timeout_s = settings.judges[judge.name].timeout_s
    await _check_model_name(judge, what, report)
    if roles == [TEACHER]:
        return await _check_response(judge, timeout_s, what, report)
    if not await _check_schema(settings, judge, store, what, report):
        return None
    seconds = await _check_verdict(judge, timeout_s, what, report)
    _report_capabilities(judge, what, report)
    if seconds is None:
        return None
    if "rubricator" in roles and not await _check_induction(judge, timeout_s, what, report):
        return None
    return seconds


async def _check_verdict(judge: Judge, timeout_s: float, what: str, report: Report) -> float | None:
    """Check that a judge decides an easy question right; return the seconds it took."""
    started = time.perf_counter()
    try:
        answer = await judge.verify(VERIFY_TASK, _context(timeout_s))
    except JudgeFailure as failure:
        report.fail_judge(what, failure)
        return None
    seconds = time.perf_counter() - started
    decided = {key: decision.met for key, decision in answer[0].items()}
    if decided != EXPECTED_VERDICTS:
        report.fail(f"{what}: it answers, but got an easy question wrong; use a stronger model")
        return None
    report.ok(f"{what}: answers in {seconds:.2f} s, and right")
    return seconds


async def _check_induction(judge: Judge, timeout_s: float, what: str, report: Report) -> bool:
    """Check that a judge writes a rubric that can be used."""
    try:
        rubric = await judge.induce(INDUCTION_TASK, _context(timeout_s))
    except JudgeFailure as failure:
        report.fail_judge(f"{what}: asked for a rubric", failure)
        return False
    report.ok(f"{what}: writes a rubric of {len(rubric)} criteria")
    return True


async def _check_response(
    judge: OpenAIJudge, timeout_s: float, what: str, report: Report
) -> float | None:
    """Check that a teacher responds to a prompt; return the seconds it took."""
    started = time.perf_counter()
    try:
        await judge.respond(VERIFY_TASK.prompt, _context(timeout_s))
    except JudgeFailure as failure:
        report.fail_judge(what, failure)
        return None
    seconds = time.perf_counter() - started
    report.ok(f"{what}: responds in {seconds:.2f} s")
    _report_capabilities(judge, what, report)
    return seconds


async def _check_schema(
    settings: Settings, judge: OpenAIJudge, store: Store | None, what: str, report: Report
) -> bool:
    """Find out which structured output each endpoint enforces, where the setting is `auto`."""
    options = settings.judges[judge.name]
    if options.structured != "auto":
        report.ok(f"{what}: structured output: {options.structured}, as set")
        return True
    for endpoint in judge.gateway.endpoints:
        try:
            support = await probe_schema(judge, endpoint, _context(options.timeout_s))
        except JudgeFailure as failure:
            place = f" at {endpoint.origin}" if len(judge.gateway.endpoints) > 1 else ""
            report.fail_judge(what + place, failure)
            return False
        endpoint.capabilities.initial_form = support.form
        report.ok(f"{what}: structured output: {support.summary}")
        if store is None:
            report.note(f"{what}: this is not stored for the service, as there is no database")
            continue
        try:
            await store.probes.save(
                Probe(endpoint.origin, judge.model, support.json_schema, support.form)
            )
        except (SQLAlchemyError, OSError) as error:
            report.warn(
                f"{what}: this could not be stored for the service ({type(error).__name__}); run "
                "'markscheme migrate' first"
            )
    return True


async def _check_model_name(judge: OpenAIJudge, what: str, report: Report) -> None:
    """Warn when an endpoint lists models and not this one. Many endpoints list none."""
    for endpoint in judge.gateway.endpoints:
        models = await listed_models(endpoint)
        if models and judge.model not in models:
            near = get_close_matches(judge.model, models, n=3) or sorted(models)[:3]
            more = " and others" if len(models) > len(near) else ""
            report.warn(
                f"{what}: {endpoint.origin} does not list this model; it lists "
                f"{', '.join(near)}{more}"
            )


def _report_capabilities(judge: OpenAIJudge, what: str, report: Report) -> None:
    """Print what the endpoints refused and is no longer sent."""
    for endpoint in judge.gateway.endpoints:
        known = endpoint.capabilities
        learned = [f"{name} is not sent" for name in sorted(known.omitted)]
        if known.length_name != "max_tokens":
            learned.append(f"{known.length_name} is sent in place of max_tokens")
        if known.max_reply_tokens is not None:
            learned.append(f"a reply may have {known.max_reply_tokens:,} tokens")
        if known.form != known.best:
            learned.append(f"structured output steps down to {known.form}")
        if learned:
            report.warn(f"{what}: learned from refusals of {endpoint.origin}: {'; '.join(learned)}")


def _context(timeout_s: float) -> CallContext:
    return CallContext(Deadline(asyncio.get_running_loop().time() + timeout_s))


def _describe(settings: Settings, name: str) -> str:
    """Name a judge with its model and roles: `judge strong (gpt-x; rubricator, verifier)`."""
    roles = [role for role, judge in settings.roles.items() if judge == name]
    model = f"{settings.judges[name].model}; " if name in settings.judges else ""
    return f"judge {name} ({model}{', '.join(roles) or 'when asked for by name'})"
