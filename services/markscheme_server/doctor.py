"""``markscheme doctor``: one line a check, each with what to do when it fails."""

import time

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server.app import make_judge
from markscheme_server.config import Settings
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import Judge, JudgeFailure, VerifyTask
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.store.store import Store

QUESTION = VerifyTask(
    prompt=({"role": "user", "content": "Name a primary colour."},),
    criteria=(Criterion("c1", "The answer names red, yellow or blue.", 1,
                        check={"kind": "contains", "texts": ["blue"]}),
              Criterion("c2", "The answer is longer than a thousand words.", 1,
                        check={"kind": "min_words", "value": 1000})),
    responses=("Blue.",))
EXPECTED = {"c1": True, "c2": False}


async def diagnose(settings: Settings, console: Console) -> bool:
    """Print the checks; true when all passed."""
    judge = make_judge(settings)
    try:
        passed = [await _database(settings, console), await _judge(settings, judge, console)]
    finally:
        await judge.aclose()
    return all(passed)


async def _database(settings: Settings, console: Console) -> bool:
    store = Store(settings.sqlalchemy_url)
    try:
        await store.database.ping()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return _say(console, False, f"database: no answer ({type(error).__name__}); check MARKSCHEME_DATABASE_URL")
    finally:
        await store.database.close()
    return _say(console, True, f"database: {store.database.engine.dialect.name} answers")


async def _judge(settings: Settings, judge: Judge, console: Console) -> bool:
    name = settings.judge_kind if settings.judge_kind == "builtin" else f"{settings.judge_model}"
    started = time.perf_counter()
    try:
        answer = await judge.verify(QUESTION)
    except JudgeFailure as failure:
        return _say(console, False, f"judge {name}: {failure} ({failure.reason})")
    seconds = time.perf_counter() - started
    decided = {key: decision.met for key, decision in answer.decisions[0].items()}
    if decided != EXPECTED:
        return _say(console, False, f"judge {name}: it answers, but got an easy question wrong; use a stronger model")
    if isinstance(judge, OpenAIJudge):
        _say(console, True, f"structured output: {judge.structured_output}")
    elif settings.judge_kind == "builtin":
        console.print("   builtin is rules, not a language model: it decides only criteria that carry a check; "
                      "set MARKSCHEME_JUDGE_BASE_URL and _MODEL for a model", markup=False)
    return _say(console, True, f"judge {name}: answers in {seconds:.2f} s, and right")


def _say(console: Console, passed: bool, words: str) -> bool:
    console.print(f"{'ok' if passed else 'FAILED':>6}  {words}", style="" if passed else "red", markup=False)
    return passed
