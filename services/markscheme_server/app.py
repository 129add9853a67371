"""Build the application from settings."""

import importlib.metadata
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypedDict, get_args

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic import SecretStr

from markscheme.schema import JudgeInfo, JudgeList
from markscheme_server import telemetry
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.accounts.erasure import erase_team
from markscheme_server.accounts.rate_limit import TeamRates
from markscheme_server.accounts.sessions import Sessions
from markscheme_server.accounts.usage import UsageService
from markscheme_server.api import (
    compat,
    errors,
    exchange,
    groups,
    health,
    lineage,
    replays,
    rollouts,
    rubrics,
    runs,
    scores,
    teams,
    usage,
)
from markscheme_server.api import judges as judges_routes
from markscheme_server.api import teachers as teacher_routes
from markscheme_server.api.drain import Drain
from markscheme_server.api.middleware import (
    AuthenticationMiddleware,
    BodyLimitMiddleware,
    HeadMiddleware,
    ObservabilityMiddleware,
    RateLimitMiddleware,
    RequestIdMiddleware,
)
from markscheme_server.api.services import Services
from markscheme_server.config import Settings
from markscheme_server.judge.base import Judge
from markscheme_server.judge.endpoint import make_endpoints
from markscheme_server.judge.gateway import Gateway
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.judge.queue import CallQueue
from markscheme_server.judge_settings import BUILTIN, SHADOW, JudgeRole
from markscheme_server.limits.concurrency import ConcurrencyLimiter
from markscheme_server.limits.quotas import Quotas
from markscheme_server.limits.redis import Redis
from markscheme_server.limits.sliding_window import SlidingWindows
from markscheme_server.pages import routes as pages
from markscheme_server.rules.judge import BuiltinJudge
from markscheme_server.scoring.judge_reports import JudgeReportService
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.replay_groups import GroupReplayer
from markscheme_server.scoring.replay_worker import ReplayWorker
from markscheme_server.scoring.replays import ReplayService
from markscheme_server.scoring.rollouts import RolloutService
from markscheme_server.scoring.rubric_library import RubricLibrary
from markscheme_server.scoring.rubrics import Freshness, RubricService
from markscheme_server.scoring.run_comparison import RunComparisonService
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.scoring.run_histories import RunHistories
from markscheme_server.scoring.runs import RunService
from markscheme_server.scoring.scores import ScoreService
from markscheme_server.scoring.shadow import ShadowService
from markscheme_server.scoring.teachers import TeacherService
from markscheme_server.scoring.unnamed_groups import UnnamedGroups
from markscheme_server.scoring.verdict_cache import VerdictCache
from markscheme_server.scoring.verdicts import VerdictService
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.store import Store

log = structlog.get_logger()

DRAIN_S = 1.0
"""Seconds that judge calls in flight get at shutdown, once every request is answered."""
HOLD_GRACE_S = 60.0
"""Seconds beyond a request's own time after which a dead process's budget reservation is freed."""
CLAIM_LEASE_S = 8.0
"""Seconds after which another process takes over the work of one that died."""
QUEUE_LIMIT = 8192
"""Limit of admitted, unfinished judge calls in one process; beyond it requests get 503."""
MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_VERDICTS = 65_536
"""Limit of one scoring request, in judged texts times criteria; beyond it a request gets 413."""
CHECKS_TIMEOUT_S = 60.0
"""Seconds of computing for the checks of one request; checks left over are `timeout`."""
VERDICT_CACHE_SIZE = 200_000
"""Verdicts in a process's memory cache, about 0.4 kB each."""
VERSION = importlib.metadata.version("markscheme")
DESCRIPTION = (
    "Prompt-specific rubrics and rewards over HTTP. An unknown reward is null, with a reason."
)
TAGS = [
    {"name": "Scores", "description": "Score rollouts by rubrics."},
    {"name": "Other trainers", "description": "The protocols of OpenRLHF and slime."},
    {"name": "Rubrics", "description": "Create, induce, find and share rubrics."},
    {"name": "Teacher bank", "description": "Responses of the model that is distilled."},
    {"name": "Runs", "description": "How training runs do: steps, criteria, findings, groups."},
    {"name": "Replays", "description": "Score stored rollouts of a run again, and compare."},
    {"name": "Usage and budgets", "description": "What was spent, may be spent, and by whom."},
    {"name": "Teams and keys", "description": "Administration; needs the scope `admin`."},
    {"name": "Operations", "description": "Probes and metrics, without a key."},
]


class State(TypedDict):
    """The state of the application, which requests see as `request.state`."""

    services: Services


def make_judge(
    settings: Settings, name: str, *, owner: str, secret: bytes, redis: Redis | None = None
) -> Judge:
    """Build the judge of this name.

    Args:
        settings: Where its table or variables are.
        name: `builtin`, or one of `settings.judges`.
        owner: Names this process where processes share limits.
        secret: The key that fences and nonces of its prompts derive from.
        redis: Where processes share limits; `None`: this process alone.

    Raises:
        ValueError: The variable of its key is not set.
    """
    if name == BUILTIN:
        return BuiltinJudge()
    chosen = settings.judges[name]
    gateway = Gateway(
        name,
        chosen,
        make_endpoints(name, chosen, settings.key_of(name)),
        ConcurrencyLimiter(
            name, chosen.concurrency, owner=owner, workers=settings.workers, redis=redis
        ),
        Quotas(
            name,
            SlidingWindows(workers=settings.workers, redis=redis),
            rpm=chosen.rpm,
            tpm=chosen.tpm,
        ),
        CallQueue(QUEUE_LIMIT),
    )
    return OpenAIJudge(chosen, gateway, secret=secret)


def describe_judges(settings: Settings) -> JudgeList:
    """Return the public description of the judges: no URLs, no keys."""

    def roles_of(name: str) -> list[JudgeRole]:
        return [role for role in get_args(JudgeRole) if settings.roles.get(role) == name]

    builtin = JudgeInfo(
        name=BUILTIN,
        kind="builtin",
        model=None,
        roles=roles_of(BUILTIN),
        price_input=0.0,
        price_output=0.0,
    )
    models = [
        JudgeInfo(
            name=name,
            kind="openai",
            model=judge.model,
            roles=roles_of(name),
            price_input=judge.price_input,
            price_output=judge.price_output,
        )
        for name, judge in settings.judges.items()
    ]
    return JudgeList(data=[builtin, *models])


async def recall_probes(store: Store, judge: Judge) -> None:
    """Restore which structured output `doctor` found each endpoint to enforce."""
    if not isinstance(judge, OpenAIJudge):
        return
    for endpoint in judge.gateway.endpoints:
        probe = await store.probes.find(endpoint.origin, judge.model)
        if probe is not None:
            endpoint.capabilities.initial_form = probe.form


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def create_app(
    settings: Settings,
    *,
    drain: Drain | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Build the service. It migrates the database when it starts.

    Args:
        settings: What the deployment decides.
        drain: The shutdown state that the server sets.
        clock: Seconds by which cached keys, limits and budgets expire.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        await migrate.prepare(settings.sqlalchemy_url, settings.sqlalchemy_migration_url)
        store = Store(
            settings.sqlalchemy_url,
            claim_lease_s=CLAIM_LEASE_S,
            hold_lease_s=settings.request_timeout_s + HOLD_GRACE_S,
        )
        if not settings.is_sqlite and not await migrate.rls_enforced(store.database):
            log.warning(
                "row_level_security_off", why="the database's role is a superuser or has BYPASSRLS"
            )
        secret = await store.secret("marks")
        authenticator = Authenticator(
            store.teams,
            operator_key=_reveal(settings.api_key),
            pepper=_reveal(settings.key_pepper),
            require_key=settings.require_api_key,
            team_rpm=settings.team_rpm,
            clock=clock,
        )
        redis = (
            Redis(settings.redis_url, _reveal(settings.redis_password))
            if settings.redis_url
            else None
        )
        made = {
            name: make_judge(settings, name, owner=store.owner, secret=secret.encode(), redis=redis)
            for name in (BUILTIN, *settings.judges)
        }
        for judge in made.values():
            await recall_probes(store, judge)
        judges = Judges(made, settings.roles)
        rates = TeamRates(SlidingWindows(workers=settings.workers, redis=redis), clock=clock)
        budgets = BudgetService(store.budgets, store.ledger, clock=clock)
        rubric_service = RubricService(
            store, Freshness(settings.reuse_max_uses, settings.reuse_max_mean_reward), budgets
        )
        verdicts = VerdictService(
            store.verdicts,
            store.claims,
            VerdictCache(size=VERDICT_CACHE_SIZE),
            budgets,
            checks=made[BUILTIN],
        )
        teachers = TeacherService(store, judges, budgets)
        shadow = ShadowService(
            store.runs,
            store.claims,
            verdicts,
            made.get(settings.roles.get(SHADOW, "")),
            second_share=settings.shadow_share,
            reask_share=settings.reask_share,
            timeout_s=settings.request_timeout_s,
        )
        score_service = ScoreService(
            store,
            rubric_service,
            verdicts,
            judges,
            teachers,
            shadow,
            timeout_s=settings.request_timeout_s,
            checks_timeout_s=CHECKS_TIMEOUT_S,
            max_verdicts=MAX_VERDICTS,
        )
        rollout_service = RolloutService(store, score_service)
        histories = RunHistories(store.runs)
        group_service = RunGroupService(
            store.runs, store.run_groups, store.rubrics, histories, list(made.values())
        )
        group_replayer = GroupReplayer(
            store.run_groups,
            store.rubrics,
            verdicts,
            judges,
            timeout_s=settings.request_timeout_s,
            checks_s=CHECKS_TIMEOUT_S,
        )
        replay_worker = ReplayWorker(store.replays, store.claims, group_replayer)
        try:
            yield {
                "services": Services(
                    authenticator,
                    Sessions(
                        authenticator,
                        secret,
                        _reveal(settings.key_pepper),
                        _reveal(settings.api_key),
                    ),
                    rates,
                    RubricLibrary(
                        store.rubrics,
                        store.rubric_versions,
                        store.lineage,
                        rubric_service,
                        judges,
                    ),
                    score_service,
                    rollout_service,
                    UnnamedGroups(store.gathering, rollout_service),
                    teachers,
                    budgets,
                    UsageService(
                        store.usage,
                        store.budgets,
                        store.audit,
                        store.teams,
                        unpriced_judges=[
                            name for name, judge in settings.judges.items() if not judge.priced
                        ],
                    ),
                    RunService(store.runs, store.budgets, histories),
                    group_service,
                    RunComparisonService(store.runs, store.run_groups, histories),
                    JudgeReportService(
                        store.judge_reports, store.runs, store.rubrics, group_service, made
                    ),
                    ReplayService(
                        store.replays,
                        store.runs,
                        store.rubrics,
                        store.lineage,
                        judges,
                        group_replayer,
                        replay_worker,
                    ),
                    store.idempotency,
                    partial(erase_team, store),
                    store.ready,
                    settings.judge_kind,
                    describe_judges(settings),
                )
            }
        finally:
            await replay_worker.aclose(DRAIN_S)
            # First running work, then its pending writes, and the database last.
            await rollout_service.drain(DRAIN_S)
            await shadow.drain(DRAIN_S)
            await rubric_service.drain(DRAIN_S)
            await verdicts.drain(DRAIN_S)
            await budgets.drain(DRAIN_S)
            await judges.aclose()
            await authenticator.drain()
            await store.drain()
            if redis is not None:
                await redis.aclose()
            await store.close()

    # Its page at /docs loads Swagger UI from this service instead of from the internet.
    app = FastAPIOffline(
        redoc_url=None,
        title="Markscheme",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=TAGS,
        # Operation ids are the names of the route functions.
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.drain = drain or Drain()
    app.state.error_page = pages.error_page
    errors.install(app)
    # The one that is added last is the outermost: a request passes them from the bottom up.
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RateLimitMiddleware)
    app.add_middleware(AuthenticationMiddleware)
    app.add_middleware(BodyLimitMiddleware, limit=MAX_BODY_BYTES)
    app.add_middleware(ObservabilityMiddleware, drain=app.state.drain)
    telemetry.install(app)
    app.add_middleware(RequestIdMiddleware)
    for router in (
        scores.router,
        rollouts.router,
        compat.router,
        rubrics.router,
        lineage.router,
        exchange.router,
        teacher_routes.router,
        runs.router,
        groups.router,
        replays.router,
        usage.router,
        judges_routes.router,
        teams.router,
        health.router,
        pages.router,
    ):
        app.include_router(router)
    return app
