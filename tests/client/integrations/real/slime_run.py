"""slime's own `batched_async_rm` and `remote_rm`; its source comes from `PYTHONPATH`."""

import asyncio
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from slime.rollout.rm_hub import batched_async_rm, remote_rm
from slime.utils.types import Sample


def samples(texts: list[str]) -> list[Sample]:
    return [
        Sample(group_index=0, index=i, prompt=sys.argv[1], response=text, label="")
        for i, text in enumerate(texts)
    ]


async def main() -> None:
    texts = sys.argv[2:6]
    group = SimpleNamespace(custom_rm_path="markscheme.integrations.slime.rubric_rm")
    unscored = samples([*texts[:3], "silent"])
    key = os.environ.get("MARKSCHEME_API_KEY", "none")
    url = f"{os.environ['MARKSCHEME_URL']}/compat/slime/{key}?size=4"
    remote = SimpleNamespace(rm_url=url)

    async def remotely(sent: list[Sample]) -> list[Any]:
        return list(await asyncio.gather(*(remote_rm(remote, each) for each in sent)))

    facts = {
        "group": await batched_async_rm(group, samples(texts)),
        "unscored": await batched_async_rm(group, unscored),
        "removed": [each.remove_sample for each in unscored],
        "remote": await remotely(samples(texts)),
        "remote, unscored": await remotely(samples([*texts[:3], "silent"])),
    }
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
