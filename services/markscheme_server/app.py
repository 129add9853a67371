"""The composition root: settings in, an application out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

import structlog
from fastapi import FastAPI
from pydantic import SecretStr

from markscheme_server import telemetry
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.accounts.rate_limit import TeamRates
from markscheme_server.api import errors, exchange, health, lineage, rubrics, scores, teams, usage
from markscheme_server.api import teachers as teacher_routes
from markscheme_server.api.drain import Drain
from markscheme_server.api.middleware import (
    Authenticated,
    BodyLimit,
    HeadAsGet,
    Observed,
    RateLimited,
    RequestId,
)
from markscheme_server.api.services import Services
from markscheme_server.config import BUILTIN, Settings
from markscheme_server.judge.base import Judge
from markscheme_server.judge.gateway import Gateway, make_endpoints
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.judge.queue import Queue
from markscheme_server.limits.concurrency import ConcurrencyLimiter
from markscheme_server.limits.quotas import Quotas
from markscheme_server.limits.redis import Redis
from markscheme_server.limits.sliding_window import SlidingWindows
from markscheme_server.rules.judge import BuiltinJudge
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.rubrics import Freshness, RubricService
from markscheme_server.scoring.scores import ScoreService
from markscheme_server.scoring.teachers import TeacherService
from markscheme_server.scoring.verdict_cache import VerdictCache
from markscheme_server.scoring.verdicts import VerdictService
from markscheme_server.store.maintenance import migrate
from markscheme_server.store.store import Store

log = structlog.get_logger()

DRAIN_S = 1.0
"""What judging still gets once its requests are over: it only goes on when nobody waits for it any more."""
HOLD_GRACE_S = 60.0
"""How long beyond a request's time the money set aside for its calls is believed to be needed."""
DESCRIPTION = "Prompt-specific rubrics and rewards over HTTP. A reward that is not known is null, with a reason."


class State(TypedDict):
    """What a request finds under ``request.state``."""

    services: Services


def make_judge(
    settings: Settings, name: str, *, owner: str, secret: bytes, redis: Redis | None = None
) -> Judge:
    """The judge of this name. ``owner`` names this process where processes share limits."""
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
        Queue(settings.queue_limit),
    )
    return OpenAIJudge(chosen, gateway, secret=secret)


async def recall_probes(store: Store, judge: Judge) -> None:
    """Begin in the form of structured output that ``doctor`` found an endpoint to enforce, where that is known."""
    if not isinstance(judge, OpenAIJudge):
        return
    for endpoint in judge.gateway.endpoints:
        probe = await store.probes.find(endpoint.origin, judge.model)
        if probe is not None:
            endpoint.capabilities.first = probe.form


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def create_app(settings: Settings, *, drain: Drain | None = None) -> FastAPI:
    """The service. The database is migrated at start-up; through ``drain`` its process says that it is about to end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        store = Store(
            settings.sqlalchemy_url,
            claim_lease_s=settings.claim_lease_s,
            hold_lease_s=settings.request_timeout_s + HOLD_GRACE_S,
        )
        await migrate.prepare(settings.sqlalchemy_url, settings.sqlalchemy_migration_url)
        if not settings.is_sqlite and not await migrate.rls_enforced(store.database):
            log.warning(
                "row_level_security_off", why="the database's role is a superuser or has BYPASSRLS"
            )
        secret = (
            settings.secret.get_secret_value() if settings.secret else await store.secret("marks")
        )
        identity = Authenticator(
            store.teams,
            operator_key=_plain(settings.api_key),
            pepper=_plain(settings.key_pepper),
            guarded=settings.guarded,
            team_rpm=settings.team_rpm,
        )
        redis = (
            Redis(settings.redis_url, _plain(settings.redis_password))
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
        rates = TeamRates(SlidingWindows(workers=settings.workers, redis=redis))
        budgets = BudgetService(store.budgets, store.verdicts)
        rubric_service = RubricService(
            store, Freshness(settings.reuse_max_uses, settings.reuse_mean_below), budgets
        )
        verdicts = VerdictService(
            store.verdicts,
            store.claims,
            VerdictCache(),
            budgets,
            checks=made[BUILTIN],
            reuse=settings.verdict_reuse,
        )
        teachers = TeacherService(store, judges, budgets)
        score_service = ScoreService(
            store,
            rubric_service,
            verdicts,
            judges,
            teachers,
            timeout_s=settings.request_timeout_s,
            checks_timeout_s=settings.checks_timeout_s,
            max_verdicts=settings.max_verdicts,
        )
        try:
            yield {
                "services": Services(
                    settings,
                    store,
                    identity,
                    rates,
                    judges,
                    rubric_service,
                    verdicts,
                    score_service,
                    teachers,
                    budgets,
                )
            }
        finally:
            await rubric_service.drain(DRAIN_S)
            await verdicts.drain(DRAIN_S)
            await budgets.drain(DRAIN_S)
            await judges.aclose()
            await identity.drain()
            await store.drain()
            if redis is not None:
                await redis.aclose()
            await store.close()

    app = FastAPI(
        title="Markscheme",
        version=version("markscheme"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.drain = drain or Drain()
    errors.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RateLimited)
    app.add_middleware(Authenticated)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Observed, drain=app.state.drain)
    telemetry.install(app)
    app.add_middleware(RequestId)
    for router in (
        rubrics.router,
        lineage.router,
        exchange.router,
        scores.router,
        teacher_routes.router,
        teams.router,
        usage.router,
        health.router,
    ):
        app.include_router(router)
    return app
