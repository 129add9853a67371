"""OpenRLHF's own `SingleTurnAgentExecutor` against `/compat/openrlhf`."""

import asyncio
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from tokenizer import byte_tokenizer

PROMPT = f"<|im_start|>user\n{sys.argv[1]}<|im_end|>\n<|im_start|>assistant\n"
tokenizer = byte_tokenizer()


class Engine:
    """What the executor needs of vLLM: gives the texts one after another."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = iter(texts)

    async def generate(self, _ids: Any, _params: Any, **_more: Any) -> Any:
        text = next(self.texts)
        ids = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
        output = SimpleNamespace(token_ids=ids, text=text, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


async def group(texts: list[str]) -> list[Any]:
    key = os.environ.get("MARKSCHEME_API_KEY", "none")
    url = f"{os.environ['MARKSCHEME_URL']}/compat/openrlhf/{key}/get_reward?size={len(texts)}"
    executor, engine = SingleTurnAgentExecutor(url), Engine(texts)
    params = SimpleNamespace(max_tokens=64, logprobs=None)
    answers = await asyncio.gather(
        *(executor.execute(PROMPT, "", params, 4096, tokenizer, engine) for _ in texts)
    )
    return [[a["reward"], a["scores"], a["extra_logs"]] for a in answers]


async def main() -> None:
    texts = sys.argv[2:6]
    facts = {
        "epochs": [await group(texts) for _ in range(2)],
        "unscored": await group([*texts[:3], "silent"]),
        "nothing known": await group(["silent", "silent"]),
    }
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
