"""Record what a question's requests cost.

A request counts at its maximum cost when it is sent, and at its actual cost once the endpoint has
stated its usage. The maximum is a token for each byte of the prompt, and the longest reply that was
allowed. Usage beyond the maximum is not believed; without plausible usage the maximum stands.
"""

from typing import Any

import aiohttp
import openai

from markscheme_server import metrics
from markscheme_server.domain.call_context import Deadline, SpendGuard
from markscheme_server.domain.usage import JudgeUsage, to_usd
from markscheme_server.judge.refusals import Refusal, RefusalKind
from markscheme_server.judge_settings import JudgeSettings

LONGEST_REPLY_TOKENS = 131_072
"""The longest reply where no length can be asked for: as much as any model writes."""
_ABSURD_TOKENS = 2**31
_TIMED_OUT = frozenset({408, 504, 524})
"""Statuses of a proxy that stopped waiting; the model may have gone on."""
_GENERATED = frozenset({RefusalKind.GENERATION, RefusalKind.TRUNCATED})
"""Refusals that come after the model has written."""


class Spending:
    """The cost of one question's requests, which are sent one after the other."""

    def __init__(
        self, settings: JudgeSettings, judge: str, role: str, budget: SpendGuard, deadline: Deadline
    ) -> None:
        self.settings, self.judge, self.role = settings, judge, role
        self._budget, self._deadline = budget, deadline

    @property
    def usage(self) -> JudgeUsage:
        """What the question has cost so far."""
        return self._budget.usage

    async def reserve_budget(self, prompt_bytes: int, reply_tokens: int) -> None:
        """Reserve the maximum cost of a request. Raises `JudgeFailure` when the budget is spent."""
        if self.settings.priced:
            await self._budget.hold(
                self.settings.max_cost(prompt_bytes, reply_tokens), self._deadline
            )

    def begin(self, prompt_bytes: int, reply_tokens: int) -> "RequestCost":
        """Record a request that is sent now, at its maximum cost."""
        before = self.usage
        cost = RequestCost(self, prompt_bytes, reply_tokens, before)
        # Booked before it is sent: a request that is cancelled or lost needs no further step.
        self.record(
            before,
            JudgeUsage(
                1, unpriced_calls=1, unknown=self.settings.max_cost(prompt_bytes, reply_tokens)
            ),
        )
        return cost

    def record(self, before: JudgeUsage, usage: JudgeUsage) -> None:
        """Set the usage to that ``before`` the last request plus the request's own."""
        self._budget.usage = before + usage


class RequestCost:
    """The cost of one request that was sent: its maximum until the outcome is known."""

    def __init__(
        self, spending: Spending, prompt_bytes: int, reply_tokens: int, before: JudgeUsage
    ) -> None:
        self._spending, self._before = spending, before
        self._prompt_bytes, self._reply_tokens = prompt_bytes, reply_tokens

    def on_answer(self, completion: Any) -> None:
        """Record the usage that the answer states, within the request's maximum."""
        settings, judge, role = self._spending.settings, self._spending.judge, self._spending.role
        prompt, cached, reply = read_usage(completion)
        # Without prices or plausible counts the cost is not known, and the maximum stands.
        known = prompt is not None and reply is not None and settings.priced
        prompt, reply = min(prompt or 0, self._prompt_bytes), min(reply or 0, self._reply_tokens)
        cached = min(cached, prompt)
        cost = settings.cost(prompt, cached, reply) if known else 0
        self._spending.record(
            self._before,
            JudgeUsage(
                1,
                prompt,
                reply,
                cached,
                cost,
                unpriced_calls=0 if known else 1,
                unknown=0 if known else settings.max_cost(self._prompt_bytes, self._reply_tokens),
            ),
        )
        for kind, tokens in (("prompt", prompt), ("completion", reply)):
            metrics.TOKENS.labels(judge=judge, role=role, kind=kind).inc(tokens)
        metrics.COST.labels(judge=judge, role=role).inc(to_usd(cost))

    def on_refusal(self, refusal: Refusal, body: Any) -> None:
        """Record a refusal: free, unless usage is stated or the model may have written."""
        if isinstance(body, dict) and (body.get("usage") or body.get("choices")):
            self.on_answer(body)
        elif refusal.status not in _TIMED_OUT and refusal.kind not in _GENERATED:
            self._record_free()

    def on_disconnect(self, error: openai.APIConnectionError) -> None:
        """Record a lost connection: free only if it was never established."""
        cause: BaseException | None = error
        # The SDK wraps aiohttp's error, which alone tells whether a connection was established.
        while cause is not None:
            if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                self._record_free()
            cause = cause.__cause__

    def _record_free(self) -> None:
        self._spending.record(
            self._before, JudgeUsage(1, unpriced_calls=0 if self._spending.settings.priced else 1)
        )


def read_usage(completion: Any) -> tuple[int | None, int, int | None]:
    """Return the stated tokens of the prompt, its cached part and the reply; ``None``: unknown.

    Zero tokens for a prompt, or for a reply that has content, count as unknown.
    """
    usage = completion.get("usage") if isinstance(completion, dict) else None
    prompt, reply = _whole(usage, "prompt_tokens"), _whole(usage, "completion_tokens")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    if reply == 0 and _has_content(completion):
        reply = None
    return prompt or None, _whole(details, "cached_tokens") or 0, reply


def _whole(usage: Any, name: str) -> int | None:
    """Return a token count; ``None`` where it is missing, of another type, negative or absurd."""
    stated = usage.get(name) if isinstance(usage, dict) else None
    # `bool` is a subclass of `int`.
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return None
    if not 0 <= stated < _ABSURD_TOKENS or stated != int(stated):
        return None
    return int(stated)


def _has_content(completion: Any) -> bool:
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    return isinstance(message, dict) and any(
        value for name, value in message.items() if name != "role"
    )
