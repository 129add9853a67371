"""`Idempotency-Key` on calls that create something: a call that is sent again is done only once.

Stored are answers that would come out the same: successes, and refusals by the work itself. A
failure that may pass is not stored, so that a retry can still succeed (other services freeze a 500
under its key; decision 0009). A body that is refused before any work leaves no trace.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from markscheme.schema import ErrorBody
from markscheme_server.api import errors
from markscheme_server.api.services import UsesServices, caller_of
from markscheme_server.domain.hashing import digest
from markscheme_server.errors import Conflict, ServiceError, Unprocessable
from markscheme_server.store.idempotency import (
    Answered,
    IdempotencyStore,
    KeyReused,
    RequestKey,
    Running,
    Started,
)

RESPONSES: dict[int | str, dict[str, Any]] = {
    409: {
        "model": ErrorBody,
        "description": "A request with this key is running; retry after Retry-After seconds",
    }
}
"""What a route that takes a key may answer, besides what all routes may."""
_MAY_PASS = (408, 409, 425, 429)
_KEY = Header(
    alias="Idempotency-Key",
    min_length=1,
    max_length=255,
    pattern=r"^[ -~]+$",
    description="A name that you choose for this call. The same call sent again under it gets the "
    "first answer, with the header Idempotent-Replayed",
)


class Idempotency:
    """One call that creates something, with or without a key."""

    def __init__(
        self, request: Request, services: UsesServices, key: Annotated[str | None, _KEY] = None
    ) -> None:
        self._request, self._store, self._key = request, services.idempotency, key

    async def answer(
        self, payload: BaseModel, work: Callable[[], Awaitable[BaseModel]], *, status: int
    ) -> Response:
        """Return the answer of `work`, or the one that this same call got before.

        Raises:
            ServiceError: The work failed in a way that may pass, the same call is running, or the
                key was used for another call.
        """
        if self._key is None:
            return _response(status, (await work()).model_dump_json())
        request_key = RequestKey(caller_of(self._request).team, self._request.url.path, self._key)
        # A field left out and one that states its default ask for the same. And a field that a
        # later version adds must not turn a call that is being retried into another call.
        fingerprint = digest(
            {
                "team": request_key.team,
                "route": request_key.route,
                "body": payload.model_dump(mode="json", exclude_defaults=True),
            }
        )
        state = await self._store.begin(request_key, fingerprint)
        if not isinstance(state, Started):
            return _replay(state)
        try:
            async with _renewed(self._store, request_key, state.owner):
                response = await self._outcome(work, status)
        except BaseException:
            # When this fails too, the row is freed when its lease ends.
            with suppress(SQLAlchemyError, OSError):
                await asyncio.shield(self._store.release(request_key, state.owner))
            raise
        text = bytes(response.body).decode()
        while not await self._store.finish(
            request_key, state.owner, status=response.status_code, body=text
        ):
            # Another attempt took over when our lease ended. All senders must get the same
            # answer, so theirs counts.
            state = await self._store.begin(request_key, fingerprint)
            if not isinstance(state, Started):
                return _replay(state)
        return response

    async def _outcome(self, work: Callable[[], Awaitable[BaseModel]], status: int) -> Response:
        """Return an answer to store; raise what may pass."""
        try:
            return _response(status, (await work()).model_dump_json())
        except ServiceError as error:
            if error.status >= 500 or error.status in _MAY_PASS:
                raise
            return errors.answer(self._request, error)


TakesKey = Annotated[Idempotency, Depends()]


def _replay(state: Answered | Running | KeyReused) -> Response:
    if isinstance(state, Answered):
        return _response(state.status, state.body, {"Idempotent-Replayed": "true"})
    if isinstance(state, Running):
        raise Conflict(
            "a request with this Idempotency-Key is running; retry after Retry-After seconds",
            code="idempotency_key_running",
            retry_after_s=max(1, math.ceil(state.lease_left_s)),
        )
    raise Unprocessable(
        "this Idempotency-Key was used with another body; use a new key for a new call",
        code="idempotency_key_reused",
        param="Idempotency-Key",
    )


def _response(status: int, body: str, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


@asynccontextmanager
async def _renewed(
    store: IdempotencyStore, request_key: RequestKey, owner: str
) -> AsyncIterator[None]:
    """Renew the lease while the block runs."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(store.lease_s / 3)
            with suppress(SQLAlchemyError, OSError):  # a lease outlasts two failed renewals
                if not await store.renew(request_key, owner):
                    return

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
