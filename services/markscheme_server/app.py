"""The composition root: settings in, an application out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI

from markscheme_server.api import errors, health, rubrics, scores
from markscheme_server.api.middleware import BodyLimit, RequestId, SharedKey
from markscheme_server.api.services import Services
from markscheme_server.cache.verdicts import MemoryVerdictCache, RedisVerdictCache, VerdictCache
from markscheme_server.config import Settings
from markscheme_server.grading.rubrics import Freshness, RubricService
from markscheme_server.grading.scores import ScoreService
from markscheme_server.grading.verdicts import VerdictService
from markscheme_server.judge.base import Judge
from markscheme_server.judge.builtin.judge import BuiltinJudge
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.store.store import Store

DESCRIPTION = "Prompt-specific rubrics and rewards over HTTP. A reward that is not known is null, with a reason."


class State(TypedDict):
    """What a request finds under ``request.state``."""

    services: Services


def make_judge(settings: Settings) -> Judge:
    """The judge the settings name."""
    return OpenAIJudge(settings) if settings.judge_kind == "openai" else BuiltinJudge()


def create_app(settings: Settings, *, judge: Judge | None = None) -> FastAPI:
    """The service. The database is migrated at start-up; ``judge`` stands in for the configured one."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        chosen = judge or make_judge(settings)
        cache: VerdictCache = RedisVerdictCache(settings.redis_url) if settings.redis_url else MemoryVerdictCache()
        store = Store(settings.sqlalchemy_url)
        await store.database.migrate()
        rubric_service = RubricService(store, chosen, Freshness(settings.reuse_max_uses, settings.reuse_mean_below))
        verdicts = VerdictService(store.verdicts, cache, judge=chosen, checks=BuiltinJudge(),
                                  concurrency=settings.judge_concurrency)
        score_service = ScoreService(store, rubric_service, verdicts, timeout_s=settings.request_timeout_s)
        try:
            yield {"services": Services(settings, store, rubric_service, verdicts, score_service)}
        finally:
            await rubric_service.drain()
            await verdicts.drain()
            await chosen.aclose()
            await cache.aclose()
            await store.database.close()

    app = FastAPI(title="Markscheme", version="0.1.0", description=DESCRIPTION, lifespan=lifespan,
                  redirect_slashes=False)
    errors.install(app)
    if settings.api_key is not None:
        app.add_middleware(SharedKey, key=settings.api_key.get_secret_value())
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(RequestId)
    for router in (rubrics.router, scores.router, health.router):
        app.include_router(router)
    return app
