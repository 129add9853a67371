"""Rollouts that a trainer rewards one at a time, sent to the group that the service gathers."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from markscheme.client import AsyncClient
from markscheme.errors import Conflict, MarkschemeError
from markscheme.hashing import digest
from markscheme.integrations.conversation import normal_conversation, wire_prompt, wire_response
from markscheme.integrations.pending import FIRST_RETRY_WAIT_S, MAX_RETRY_WAIT_S, is_outage
from markscheme.schema import Rollout, ScoredRollout
from markscheme.vocabulary import UnscoredReason

MAX_OUTAGE_S = 600.0
"""Seconds to wait for a service that cannot be reached."""

T = TypeVar("T")

log = logging.getLogger(__name__)

_clients: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str | None, AsyncClient]]" = (
    WeakKeyDictionary()
)
_numbers: dict[str, int] = {}
"""The last number of each group without a name of its own."""


class RolloutUnscored(MarkschemeError):
    """The reward of a rollout is not known. Its message names the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        """Return the message."""
        return f"the rollout is unscored ({self.reason})"


def loop_client(url: str | None = None) -> AsyncClient:
    """Return the running loop's client of a service.

    Args:
        url: Its address; default: `MARKSCHEME_URL`. The key is that of `MARKSCHEME_API_KEY`.
    """
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if url not in clients:
        clients[url] = AsyncClient(url)
    return clients[url]


async def retry_outages(
    ask: Callable[[], Awaitable[T]], *, max_outage_s: float = MAX_OUTAGE_S
) -> T:
    """Return the answer of a service that may be away for `max_outage_s` seconds meanwhile."""
    give_up_at, wait_s = time.monotonic() + max_outage_s, FIRST_RETRY_WAIT_S
    while True:
        try:
            return await ask()
        except MarkschemeError as error:
            if not is_outage(error) or time.monotonic() >= give_up_at:
                raise
            log.warning("%s; it is asked again in %.0f s", error, wait_s)
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, MAX_RETRY_WAIT_S)


async def score_in_group(
    client: AsyncClient,
    prompt: Any,
    response: Any,
    *,
    size: int,
    key: str | None = None,
    rollout_id: str | None = None,
    truncated: bool = False,
    **options: Any,
) -> ScoredRollout:
    """Score a rollout with its group, whose other rollouts come from other calls and processes.

    Args:
        client: The service.
        prompt: A text or messages as trainers hold them.
        response: What followed, likewise.
        size: Rollouts of the group.
        key: The trainer's name for the group. Without one, the rollouts of a prompt are taken in
            groups of `size` as they come.
        rollout_id: The trainer's name for the rollout in its group.
        truncated: Whether the rollout hit the token limit.
        **options: Of `AsyncClient.rollout`, such as `run` and `wait_s`.

    Raises:
        RolloutUnscored: Its reward is not known.
        MarkschemeError: The service refuses the request, or stays away too long.
    """
    asked = wire_prompt(normal_conversation(prompt, "prompt"))
    answered = wire_response(normal_conversation(response, "response"), "response")
    identifier = rollout_id or uuid.uuid4().hex
    rollout = (
        Rollout(id=identifier, text=answered, truncated=truncated)
        if isinstance(answered, str)
        else Rollout(id=identifier, messages=answered, truncated=truncated)
    )
    base = key or digest([prompt_value(asked), size])
    number = 0 if key else _numbers.get(base, 0)
    while True:
        try:
            scored = await retry_outages(
                lambda name=key or f"{base}-{number}": client.rollout(  # type: ignore[misc]
                    asked, rollout, key=name, size=size, **options
                )
            )
        except Conflict as conflict:
            if key or conflict.code != "group_full":
                raise
            # An earlier group of this prompt, as in the epoch before.
            number += 1
            _numbers[base] = number
            continue
        if scored.reward is None:
            raise RolloutUnscored(scored.rollout.reason or UnscoredReason.UNAVAILABLE)
        return scored


def prompt_value(prompt: Any) -> Any:
    """Return a wire prompt as JSON."""
    return (
        prompt
        if isinstance(prompt, str)
        else [message.model_dump(mode="json", exclude_none=True) for message in prompt]
    )
