"""`Task.score` of verifiers on real traces, with the judge plugged by its id."""

import asyncio
import json
import sys
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.configs.task import TaskConfig
from verifiers.v1.trace import AgentInfo, Trace, TraceTask


async def scored(text: str, **settings: Any) -> Any:
    judges = [{"id": "markscheme_judge", **settings}]
    task = vf.Task(vf.TaskData(prompt=sys.argv[1], idx=0), TaskConfig(judges=judges))
    trace = Trace(
        task=TraceTask(type="Task", data=task.data),
        agent=AgentInfo(config=AgentConfig()),
        root_reply=text,
    )
    try:
        await task.score(trace)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [trace.reward, dict(trace.metrics)]


async def main() -> None:
    texts = sys.argv[2:6]
    facts = {
        "no rubric": await scored(texts[0], reuse="frozen"),
        "group": await asyncio.gather(*(scored(text, group_size=4) for text in texts)),
        "unscored": await asyncio.gather(
            *(scored(text, group_size=4) for text in [*texts[:3], "silent"])
        ),
    }
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
