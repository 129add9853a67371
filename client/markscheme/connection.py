"""What both clients have in common: the address, the key, and how calls are sent."""

import asyncio
import copy
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from markscheme import protocol
from markscheme.deadline import check_seconds
from markscheme.errors import InvalidArgument
from markscheme.protocol import MAX_RETRIES, Answer, Call
from markscheme.transport import AsyncConnections, Connections

DEFAULT_URL = "http://127.0.0.1:8321"
"""Where `markscheme serve` listens by default."""
URL_VARIABLE, API_KEY_VARIABLE = "MARKSCHEME_URL", "MARKSCHEME_API_KEY"
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")

ConnectionsT = TypeVar("ConnectionsT", Connections, AsyncConnections)


class _NotGiven:
    """The type of an argument that was left out, where `None` means something."""

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Any = _NotGiven()


class Connection(Generic[ConnectionsT]):
    """An address, a key and options, over connections that copies share.

    Attributes:
        base_url: Address of the service, without `/v1` and the last slash.
        api_key: The key that is sent, if there is one.
        timeout: Time limits of every call; `None` where each call has its own.
        max_retries: Attempts after the first.
        default_headers: Headers of every request beside the client's own.
    """

    base_url: str
    api_key: str | None
    timeout: httpx.Timeout | None = None
    max_retries: int = MAX_RETRIES
    default_headers: Mapping[str, str] = {}

    def __init__(
        self,
        connections: ConnectionsT,
        base_url: str | httpx.URL | None,
        api_key: str | None,
        timeout: float | httpx.Timeout | None,
        max_retries: int,
        default_headers: Mapping[str, str] | None,
    ) -> None:
        self._connections: ConnectionsT = connections
        # What the environment says is checked here, so that an error names the variable.
        if base_url is None:
            self.base_url = service_url(_environment(URL_VARIABLE) or DEFAULT_URL, URL_VARIABLE)
        if api_key is None:
            self.api_key = _checked_key(_environment(API_KEY_VARIABLE), API_KEY_VARIABLE)
        self._set_options(base_url, api_key, timeout, max_retries, default_headers)

    def _copy_with(
        self,
        connections: ConnectionsT | None,
        base_url: str | httpx.URL | None,
        api_key: str | None,
        timeout: float | httpx.Timeout | None,
        max_retries: int | None,
        default_headers: Mapping[str, str] | None,
    ) -> Self:
        """Return a client on the same connections, or on others, with other options."""
        changed = copy.copy(self)
        if connections is not None:
            changed._connections = connections
        changed._set_options(base_url, api_key, timeout, max_retries, default_headers)
        return changed

    def _set_options(
        self,
        base_url: str | httpx.URL | None,
        api_key: str | None,
        timeout: float | httpx.Timeout | None,
        max_retries: int | None,
        default_headers: Mapping[str, str] | None,
    ) -> None:
        """Check and set what is given; `None` leaves an option as it is, for `timeout` no limit."""
        if base_url is not None:
            self.base_url = service_url(base_url, "base_url")
        if api_key is not None:
            self.api_key = _checked_key(api_key, "api_key")
        if timeout is not NOT_GIVEN:
            self.timeout = _checked_timeout(timeout)
        if max_retries is not None:
            if not isinstance(max_retries, int) or isinstance(max_retries, bool) or max_retries < 0:
                raise InvalidArgument("max_retries", "must be a whole number, 0 or more")
            self.max_retries = max_retries
        if default_headers is not None:
            self.default_headers = {**self.default_headers, **_checked_headers(default_headers)}

    def _request_options(self, call: Call[Any]) -> dict[str, Any]:
        """Return what httpx needs to send a call, with this client's options."""
        headers = httpx.Headers(protocol.headers(self.api_key))
        headers.update(self.default_headers)
        # What a call needs wins over the client's own headers.
        headers.update(call.headers)
        return {
            "method": call.method,
            "url": self.base_url + call.path,
            "json": call.json,
            "params": call.params,
            "headers": headers,
            "timeout": self.timeout or self._connections.timeout or call.timeout,
            "extensions": call.extensions(self.max_retries),
        }

    @property
    def _shown_url(self) -> str:
        """The address without a password."""
        return str(httpx.URL(self.base_url).copy_with(userinfo=b""))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown_url!r})"


class SyncConnection(Connection[Connections]):
    """Sends calls and waits for their answers."""

    def _send(self, call: Call[Answer]) -> Answer:
        http = self._connections.http()
        with self._translated_errors(call):
            response = http.request(**self._request_options(call))
        return call.read(response)

    @contextmanager
    def _translated_errors(self, call: Call[Any]) -> Iterator[None]:
        try:
            yield
        except httpx.InvalidURL as error:
            raise _bad_address(error) from error
        except httpx.RequestError as error:
            raise protocol.connection_error(self._shown_url, error, call.deadline) from error

    def close(self) -> None:
        """Close all connections, also those of its `with_options` copies."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncConnection(Connection[AsyncConnections]):
    """Sends calls and awaits their answers."""

    async def _send(self, call: Call[Answer]) -> Answer:
        http = self._connections.http()
        async with self._translated_errors(call):
            response = await http.request(**self._request_options(call))
        return call.read(response)

    @asynccontextmanager
    async def _translated_errors(self, call: Call[Any]) -> AsyncIterator[None]:
        deadline = call.deadline
        try:
            async with asyncio.timeout(
                deadline.remaining_s if deadline is not None else None
            ) as limit:
                yield
        except httpx.InvalidURL as error:
            raise _bad_address(error) from error
        except httpx.RequestError as error:
            raise protocol.connection_error(self._shown_url, error, deadline) from error
        except TimeoutError as error:
            if deadline is None or not limit.expired():
                raise  # a timeout of the caller's own, or one that is translated already
            raise deadline.exceeded() from error

    async def close(self) -> None:
        """Close all connections, also those of its `with_options` copies."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _bad_address(error: httpx.InvalidURL) -> InvalidArgument:
    return InvalidArgument("", f"an argument that is part of the address is too long: {error}")


def service_url(url: str | httpx.URL, param: str) -> str:
    """Return the address of a service without `/v1` and the last slash.

    The paths of the API begin with `/v1`; OpenAI's clients want it in the address. Raises
    `InvalidArgument`, which names `param`.
    """
    if not isinstance(url, str | httpx.URL):
        raise InvalidArgument(param, f"must be a text, not a {type(url).__name__}")
    text = str(url).strip()
    if "://" not in text:
        raise InvalidArgument(param, f"{text!r} has no scheme: write http://… or https://…")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise InvalidArgument(param, f"is no address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgument(param, "must be an http:// or https:// address with a host")
    if parsed.query or parsed.fragment:
        raise InvalidArgument(param, "must have no ? and no #")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def _environment(name: str) -> str:
    """Return a variable of the environment without surrounding white space, or an empty text."""
    return os.environ.get(name, "").strip()


def _checked_key(key: str, param: str) -> str | None:
    """Return the key, or `None` for an empty one. Raises `InvalidArgument` without showing it."""
    if not isinstance(key, str):
        raise InvalidArgument(param, f"must be a text, not a {type(key).__name__}")
    if key and not _HEADER_VALUE.fullmatch(key):
        raise InvalidArgument(param, "must be printable ASCII without spaces around it")
    return key or None


def _checked_timeout(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    if isinstance(timeout, httpx.Timeout):
        return timeout
    if timeout is not None:
        check_seconds(timeout, "timeout")
        timeout = float(timeout)
    return httpx.Timeout(timeout)


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise InvalidArgument("default_headers", "must be a mapping of names to values")
    for name, value in headers.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
            raise InvalidArgument("default_headers", f"{name!r} is no name of a header")
        if not isinstance(value, str) or not (value == "" or _HEADER_VALUE.fullmatch(value)):
            raise InvalidArgument(
                "default_headers", f"the value of {name} must be printable ASCII text"
            )
    return dict(headers)
