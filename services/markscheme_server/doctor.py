"""``markscheme doctor``: one line a check, each with what to do when it fails."""

import asyncio
import secrets
import time

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from markscheme_server.app import make_judge
from markscheme_server.config import BUILTIN, Settings
from markscheme_server.domain.deadline import Deadline, Patience
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import JudgeFailure, VerifyTask
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
LOCAL_TIMEOUT_S = 10.0


async def diagnose(settings: Settings, console: Console) -> bool:
    """Print the checks; true when all passed."""
    passed = [await _database(settings, console)]
    for name in settings.judges or (BUILTIN,):
        passed.append(await _judge(settings, name, console))
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


async def _judge(settings: Settings, name: str, console: Console) -> bool:
    roles = " and ".join(role for role, played_by in settings.roles.items() if played_by == name)
    shown = f"judge {name}" + (f" ({roles})" if roles else "")
    try:
        judge = make_judge(settings, name, owner="doctor", secret=secrets.token_bytes(16))
    except ValueError as error:
        return _say(console, False, f"{shown}: {error}")
    started = time.perf_counter()
    try:
        timeout_s = settings.judges[name].timeout_s if name != BUILTIN else LOCAL_TIMEOUT_S
        answer = await judge.verify(QUESTION, Patience(Deadline(asyncio.get_running_loop().time() + timeout_s)))
    except JudgeFailure as failure:
        return _say(console, False, f"{shown}: {failure} ({failure.reason})")
    finally:
        await judge.aclose()
    seconds = time.perf_counter() - started
    decided = {key: decision.met for key, decision in answer.decisions[0].items()}
    if decided != EXPECTED:
        return _say(console, False, f"{shown}: it answers, but got an easy question wrong; use a stronger model")
    if isinstance(judge, OpenAIJudge):
        _say(console, True, f"{shown}: structured output: {judge.structured_output}")
    else:
        console.print("   builtin is rules, not a language model: it decides only criteria that carry a check; "
                      "set MARKSCHEME_JUDGE_BASE_URL and _MODEL for a model", markup=False)
    return _say(console, True, f"{shown}: answers in {seconds:.2f} s, and right")


def _say(console: Console, passed: bool, words: str) -> bool:
    console.print(f"{'ok' if passed else 'FAILED':>6}  {words}", style="" if passed else "red", markup=False)
    return passed
