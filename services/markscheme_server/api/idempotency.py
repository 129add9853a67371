"""``Idempotency-Key`` on the calls that create something: sent again, they are answered again and done once.

What is kept is what would come out the same: successes, and refusals by the work itself. A failure that may pass
is not kept, so that the retry of a call gets its rubric (other services freeze a 500 under its key; decision 0009).
A body that is refused before any work leaves no trace under the key.
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
    Address,
    Answered,
    Begun,
    IdempotencyStore,
    Reused,
    Running,
)

RESPONSES: dict[int | str, dict[str, Any]] = {
    409: {
        "model": ErrorBody,
        "description": "A request with this key is running; Retry-After says when to ask again",
    }
}
"""What a route that takes a key may answer besides what all routes may."""
_MAY_PASS = (408, 409, 425, 429)
_KEY = Header(
    alias="Idempotency-Key",
    min_length=1,
    max_length=255,
    pattern=r"^[ -~]+$",
    description="A name of your choice for this one call: the same call sent again under it is answered with the "
    "first answer, marked Idempotent-Replayed",
)


class Idempotency:
    """One creating call, with or without a key."""

    def __init__(
        self, request: Request, services: UsesServices, key: Annotated[str | None, _KEY] = None
    ) -> None:
        self._request, self._store, self._key = request, services.store.idempotency, key

    async def answer(
        self, payload: BaseModel, work: Callable[[], Awaitable[BaseModel]], *, status: int
    ) -> Response:
        """The answer of ``work``, or the one that this very call got before. Raises :class:`ServiceError`."""
        if self._key is None:
            return _response(status, (await work()).model_dump_json())
        address = Address(caller_of(self._request).team, self._request.url.path, self._key)
        # What is left out and what states a default ask for the same; a field that a later version of the
        # service adds does not make a call under way another one.
        fingerprint = digest(
            {
                "team": address.team,
                "route": address.route,
                "body": payload.model_dump(mode="json", exclude_defaults=True),
            }
        )
        standing = await self._store.begin(address, fingerprint)
        if not isinstance(standing, Begun):
            return _standing(standing)
        try:
            async with _kept_alive(self._store, address, standing.owner):
                response = await self._outcome(work, status)
        except BaseException:
            # A store that fails here leaves the row to its lease.
            with suppress(SQLAlchemyError, OSError):
                await asyncio.shield(self._store.release(address, standing.owner))
            raise
        text = bytes(response.body).decode()
        while not await self._store.finish(
            address, standing.owner, status=response.status_code, body=text
        ):
            # Taken over in the meantime: every sender of this call is to hear the same, so theirs counts.
            standing = await self._store.begin(address, fingerprint)
            if not isinstance(standing, Begun):
                return _standing(standing)
        return response

    async def _outcome(self, work: Callable[[], Awaitable[BaseModel]], status: int) -> Response:
        """The answer that is to be kept; whatever may pass is raised."""
        try:
            return _response(status, (await work()).model_dump_json())
        except ServiceError as error:
            if error.status >= 500 or error.status in _MAY_PASS:
                raise
            return errors.answer(self._request, error)


TakesKey = Annotated[Idempotency, Depends()]


def _standing(standing: Answered | Running | Reused) -> Response:
    if isinstance(standing, Answered):
        return _response(standing.status, standing.body, {"Idempotent-Replayed": "true"})
    if isinstance(standing, Running):
        raise Conflict(
            "a request with this Idempotency-Key is running; send it again after Retry-After seconds",
            code="idempotency_key_running",
            retry_after_s=max(1, math.ceil(standing.lease_left_s)),
        )
    raise Unprocessable(
        "this Idempotency-Key was used with another body; make a new key for a new call",
        code="idempotency_key_reused",
        param="Idempotency-Key",
    )


def _response(status: int, body: str, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


@asynccontextmanager
async def _kept_alive(store: IdempotencyStore, address: Address, owner: str) -> AsyncIterator[None]:
    """Renew the lease while the block runs."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(store.lease_s / 3)
            with suppress(SQLAlchemyError, OSError):  # one lost beat is not the end of a lease
                if not await store.renew(address, owner):
                    return

    heart = asyncio.create_task(renew())
    try:
        yield
    finally:
        heart.cancel()
        await asyncio.gather(heart, return_exceptions=True)
