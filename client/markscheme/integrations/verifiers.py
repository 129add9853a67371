"""`MarkschemeJudge`: a judge plug-in for verifiers and prime-rl.

verifiers finds a plug-in by the name of a top-level module. Write one beside the taskset:

    # markscheme_judge.py
    from markscheme.integrations.verifiers import MarkschemeJudge
    __all__ = ["MarkschemeJudge"]

and name it: `judges = [{"id": "markscheme_judge", "group_size": 8}]`. An unscored rollout raises
`RolloutUnscored`, so that it is an error and prime-rl leaves it out of its group. Checked with
verifiers 0.4.0.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, cast

from markscheme.integrations.gathering import loop_client, score_in_group

__all__ = ["MarkschemeJudge"]

if TYPE_CHECKING:
    MarkschemeJudge: Any


@cache
def _judge() -> type:
    """Return the class, which derives from verifiers'."""
    from verifiers.v1.configs.judge import JudgeConfig  # type: ignore[import-not-found]
    from verifiers.v1.judge import Judge  # type: ignore[import-not-found]

    class MarkschemeJudgeConfig(JudgeConfig):  # type: ignore[misc]
        id: str = "markscheme_judge"
        url: str | None = None
        """The service's address; default: `MARKSCHEME_URL`."""
        group_size: int = 1
        """Rollouts of each task that are scored together."""
        wait_s: float = 60.0
        """Seconds to wait for all of them."""
        reuse: str = "if_fresh"
        """Which rubrics may be reused; see `Client.induce`."""
        rubric_field: str = ""
        """The field of the task that holds a rubric's id."""

    class MarkschemeJudge(Judge[float, MarkschemeJudgeConfig]):  # type: ignore[misc]
        """Scores a rollout by its task's rubric, together with the others of its group."""

        async def score(self, task: Any, trace: Any) -> float:
            """Return the reward; raise `RolloutUnscored` where it is not known."""
            config = self.config
            scored = await score_in_group(
                loop_client(config.url),
                task.prompt_text,
                trace.last_reply,
                size=config.group_size,
                rollout_id=trace.id,
                truncated=trace.is_truncated,
                wait_s=config.wait_s,
                reuse=config.reuse,
                rubric_id=getattr(task, config.rubric_field) if config.rubric_field else None,
            )
            for verdict in scored.rollout.verdicts:
                if verdict.met is not None:
                    trace.record_metric(
                        f"{self.reward_name}/{verdict.criterion_id}", float(verdict.met)
                    )
            return cast(float, scored.reward)

    return MarkschemeJudge


def __getattr__(name: str) -> Any:
    if name == "MarkschemeJudge":
        return _judge()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
