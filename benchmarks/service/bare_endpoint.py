"""The least that can stand between a client and a judge: `python -m service.bare_endpoint URL`.

It asks the judge at URL what is posted to it, by the `openai` SDK on uvicorn, and keeps nothing.
Beside it the service's latency shows what the client, the judge and the machine take by themselves.
"""

import json
import sys
from typing import Any

import uvicorn
from openai import AsyncOpenAI, DefaultAioHttpClient

from markscheme_server.cli.server import listen


class BareEndpoint:
    """An ASGI application whose every request is one question to the judge."""

    def __init__(self, base_url: str) -> None:
        self._client = AsyncOpenAI(
            base_url=base_url, api_key="stub", max_retries=0, http_client=DefaultAioHttpClient()
        )

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        answer = await self._client.chat.completions.create(**json.loads(body))
        content = json.dumps({"reply": answer.choices[0].message.content}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def main() -> None:
    """Serve until ended, and print the address."""
    listener = listen("127.0.0.1", 0)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        BareEndpoint(sys.argv[1]), lifespan="off", http="h11", log_level="warning", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
