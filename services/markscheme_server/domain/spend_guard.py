"""Who pays for a question."""

from markscheme_server.domain.call_context import Deadline
from markscheme_server.domain.usage import JudgeUsage


class SpendGuard:
    """What one question has cost so far, and the money for its next request. This one has no limit.

    ``usage`` is kept up to date by the judge: a request counts at its highest cost from the moment it is sent,
    and at its real cost once that is known.
    """

    def __init__(self) -> None:
        self.usage = JudgeUsage()

    async def hold(self, nano: int, deadline: Deadline) -> None:
        """Set aside ``nano`` nano-dollars, the most that the next request can cost. Raises ``JudgeFailure`` when
        the budget is spent, or has no money free before the deadline."""
