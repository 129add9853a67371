"""What a question's requests cost: each is booked when it is sent, at the most it can cost, and at its real cost
once the endpoint has stated that.

The most is what was asked for: a token for each byte of the prompt, and the longest reply that was allowed. An
endpoint is not believed beyond it. Where it states nothing that can be believed, the request stays at the most.
"""

from typing import Any

import aiohttp
import openai

from markscheme_server import metrics
from markscheme_server.config import JudgeSettings
from markscheme_server.domain.call_context import Deadline, SpendGuard
from markscheme_server.domain.usage import JudgeUsage, to_usd
from markscheme_server.judge.refusals import Kind, Refusal

LONGEST_REPLY_TOKENS = 131_072
"""The longest reply where none can be asked for: as much as any model writes."""
_ABSURD_TOKENS = 2**31
_TIMED_OUT = frozenset({408, 504, 524})
"""Statuses of a proxy that did not wait for the model, which may have gone on."""
_GENERATED = frozenset({Kind.GENERATION, Kind.TRUNCATED})
"""Refusals of what the model had already written."""


class Spending:
    """One question's requests, one after the other, and who pays for them."""

    def __init__(
        self, settings: JudgeSettings, judge: str, role: str, budget: SpendGuard, deadline: Deadline
    ) -> None:
        self.settings, self.judge, self.role = settings, judge, role
        self._budget, self._deadline = budget, deadline

    @property
    def usage(self) -> JudgeUsage:
        """What the question has cost so far."""
        return self._budget.usage

    async def cover(self, prompt_bytes: int, reply_tokens: int) -> None:
        """See to the money for a request of this size. Raises ``JudgeFailure`` when the budget is spent."""
        if self.settings.priced:
            await self._budget.hold(self.settings.most(prompt_bytes, reply_tokens), self._deadline)

    def begin(self, prompt_bytes: int, reply_tokens: int) -> "Request":
        """Book a request, which is sent now."""
        before = self.usage
        request = Request(self, prompt_bytes, reply_tokens, before)
        self.book(
            before,
            JudgeUsage(1, unpriced_calls=1, unknown=self.settings.most(prompt_bytes, reply_tokens)),
        )
        return request

    def book(self, before: JudgeUsage, usage: JudgeUsage) -> None:
        """Say what the request after ``before`` came to."""
        self._budget.usage = before + usage


class Request:
    """One request that was sent. Until it is known what it cost, it is booked at the most that it can."""

    def __init__(
        self, spending: Spending, prompt_bytes: int, reply_tokens: int, before: JudgeUsage
    ) -> None:
        self._spending, self._before = spending, before
        self._prompt_bytes, self._reply_tokens = prompt_bytes, reply_tokens

    def answered(self, completion: Any) -> None:
        """It was answered: believe what the answer states it used, as far as that can be."""
        settings, judge, role = self._spending.settings, self._spending.judge, self._spending.role
        prompt, cached, reply = read_usage(completion)
        known = prompt is not None and reply is not None and settings.priced
        prompt, reply = min(prompt or 0, self._prompt_bytes), min(reply or 0, self._reply_tokens)
        cached = min(cached, prompt)
        cost = settings.cost(prompt, cached, reply) if known else 0
        self._spending.book(
            self._before,
            JudgeUsage(
                1,
                prompt,
                reply,
                cached,
                cost,
                unpriced_calls=0 if known else 1,
                unknown=0 if known else settings.most(self._prompt_bytes, self._reply_tokens),
            ),
        )
        for kind, tokens in (("prompt", prompt), ("completion", reply)):
            metrics.TOKENS.labels(judge=judge, role=role, kind=kind).inc(tokens)
        metrics.COST.labels(judge=judge, role=role).inc(to_usd(cost))

    def refused(self, refusal: Refusal, body: Any) -> None:
        """It was refused, which is free unless the model had begun or usage is stated."""
        if isinstance(body, dict) and (body.get("usage") or body.get("choices")):
            self.answered(body)
        elif refusal.status not in _TIMED_OUT and refusal.kind not in _GENERATED:
            self._free()

    def disconnected(self, error: openai.APIConnectionError) -> None:
        """There was no answer. It is free where there was no connection to send it on."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                self._free()
            cause = cause.__cause__

    def _free(self) -> None:
        self._spending.book(
            self._before, JudgeUsage(1, unpriced_calls=0 if self._spending.settings.priced else 1)
        )


def read_usage(completion: Any) -> tuple[int | None, int, int | None]:
    """The prompt's tokens, those of them that were cached, and the reply's, as stated; ``None``: not known.

    A prompt of no tokens, or none for a reply that says something, is as good as not stated.
    """
    usage = completion.get("usage") if isinstance(completion, dict) else None
    prompt, reply = _whole(usage, "prompt_tokens"), _whole(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    if reply == 0 and _says_something(completion):
        reply = None
    return prompt or None, _whole(details, "cached_tokens") or 0, reply


def _whole(usage: Any, name: str) -> int | None:
    """A count of tokens; ``None`` where it is missing, of another type, negative or absurd."""
    stated = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return None
    if not 0 <= stated < _ABSURD_TOKENS or stated != int(stated):
        return None
    return int(stated)


def _says_something(completion: Any) -> bool:
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    return isinstance(message, dict) and any(
        said for name, said in message.items() if name != "role"
    )
