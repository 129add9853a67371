"""Send requests to an endpoint by aiohttp, with the address and headers that the SDK gives them.

Of two requests to a path only the body differs, so the SDK makes the rest once and sends nothing.
By its own client a request took 0.32 ms of computing, by aiohttp 0.14 ms (`runs.http_parts`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from openai import APIConnectionError, APITimeoutError, AsyncOpenAI
from pydantic import SecretStr

from markscheme_server.judge.reply_cap import read_reply
from markscheme_server.judge.retry import ProtocolError
from markscheme_server.judge_settings import JudgeSettings

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_S = 5.0
"""A connection that takes longer counts as failed; nothing was sent."""
KEEP_ALIVE_S = 5.0
"""How long an idle connection stays open."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whatever its status. Its headers are found in upper and lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Transport:
    """Sends requests to one URL of a judge, over a connection pool of its own.

    The pool has one connection more than the judge's concurrency: for the canned question.
    """

    def __init__(self, url: str | None, settings: JudgeSettings, key: SecretStr | None) -> None:
        self._url, self._settings, self._key = httpx2.URL(url or OPENAI_URL), settings, key
        self._connect_s = min(CONNECT_TIMEOUT_S, settings.timeout_s / 2)
        self._forms: dict[str, _Form] = {}
        """By path."""
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self, method: Literal["GET", "POST"], path: str, content: bytes | None = None
    ) -> Reply:
        """Send a request below the URL; return the answer.

        Raises:
            openai.APIConnectionError: There was no connection, or it was lost.
            openai.APITimeoutError: The endpoint fell silent.
            ProtocolError: The answer is not HTTP.
            UnusableReply: It is too large, or encoded.
        """
        try:
            if path not in self._forms:
                self._forms[path] = await self._make_form(path)
            form = self._forms[path]
            if self._session is None:
                self._session = self._open()
            async with self._session.request(
                method, form.url, headers=form.headers, data=content, allow_redirects=False
            ) as response:
                return Reply(response.status, response.headers, await read_reply(response))
        except (aiohttp.ClientConnectionError, aiohttp.ClientHttpProxyError) as error:
            if isinstance(error, aiohttp.SocketTimeoutError):
                raise APITimeoutError(request=form.request) from error
            raise APIConnectionError(request=form.request) from error
        except (aiohttp.ClientResponseError, UnicodeError) as error:
            # A status line or a header that cannot be read, or a key that cannot be written.
            raise ProtocolError("the answer is not HTTP") from error
        except aiohttp.ClientError as error:
            raise APIConnectionError(request=form.request) from error

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _make_form(self, path: str) -> "_Form":
        keeper = _Keeper()
        async with AsyncOpenAI(
            api_key=self._key.get_secret_value() if self._key else "none",
            base_url=self._url,
            # The gateway retries, within the deadline and the retry budget.
            max_retries=0,
            timeout=httpx2.Timeout(self._settings.timeout_s, connect=self._connect_s),
            http_client=httpx2.AsyncClient(transport=keeper, trust_env=False),
            default_headers={"Accept-Encoding": "identity"},
        ) as sdk:
            own = self._settings.extra_headers
            await sdk.post(
                path,
                cast_to=httpx2.Response,
                content=b"{}",
                options={"headers": own} if own else {},
            )
        made = keeper.request
        headers = {name: value for name, value in made.headers.items() if name != "content-length"}
        # A user and password in it are in the headers by now; aiohttp refuses to take both.
        url = made.url.copy_with(username=None, password=None)
        return _Form(made, str(url), headers)

    def _open(self) -> aiohttp.ClientSession:
        url, settings = self._url, self._settings
        proxies = {} if proxy_bypass(url.host) else getproxies()
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.concurrency + 1,
                keepalive_timeout=KEEP_ALIVE_S,
                ssl=httpx2.create_ssl_context() if url.scheme == "https" else True,
            ),
            timeout=aiohttp.ClientTimeout(
                sock_connect=self._connect_s,
                sock_read=settings.timeout_s,
                connect=settings.timeout_s,  # includes the wait for a free connection
            ),
            proxy=proxies.get(url.scheme) or proxies.get("all"),
            # `read_reply` does, within its cap.
            auto_decompress=False,
        )


@dataclass(frozen=True, slots=True)
class _Form:
    """A request as the SDK makes it, with its address and headers without the body's length."""

    request: httpx2.Request
    url: str
    headers: Mapping[str, str]


class _Keeper(httpx2.AsyncBaseTransport):
    """Keeps a request instead of sending it."""

    request: httpx2.Request

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.request = request
        return httpx2.Response(200)
