"""NeMo Gym's own resources server over HTTP with the recipe; its source is in `PYTHONPATH`."""

import asyncio
import json
import sys
from typing import Any

import httpx
from nemo_gym.server_utils import ServerClient
from omegaconf import OmegaConf
from recipe import recipe

RubricServer = recipe("nemo_gym.md")["RubricServer"]


def body(text: str, prompt: Any) -> dict[str, Any]:
    """Build what an agent posts to `/verify`."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }
    return {
        "responses_create_params": {"input": prompt},
        "response": {
            "id": "r",
            "object": "response",
            "created_at": 0,
            "model": "m",
            "output": [message],
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
        },
    }


async def main() -> None:
    place = {"host": "127.0.0.1", "port": 1}
    client = ServerClient(head_server_config=place, global_config_dict=OmegaConf.create({}))
    config = {**place, "entrypoint": "app.py", "name": "rubric", "size": 4}
    server = RubricServer(config=config, server_client=client)
    transport = httpx.ASGITransport(server.setup_webserver())

    async def verified(texts: list[str], prompt: Any) -> list[Any]:
        async with httpx.AsyncClient(transport=transport, base_url="http://gym") as client:
            answers = await asyncio.gather(
                *(client.post("/verify", json=body(text, prompt), timeout=60) for text in texts)
            )
        found = [answer.json() for answer in answers]
        return [[each["reward"], each.get("_ng_failure_class")] for each in found]

    texts = sys.argv[2:6]
    messages = [{"role": "user", "content": sys.argv[1]}]
    facts = {
        "group": await verified(texts, messages),
        "text": await verified(texts, sys.argv[1]),
        "unscored": await verified([*texts[:3], "silent"], messages),
    }
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
