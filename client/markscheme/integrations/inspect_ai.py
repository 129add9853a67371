"""`rubric`: a scorer for inspect_ai. Checked with inspect_ai 0.3.285."""

from functools import cache
from typing import Any

from markscheme.integrations.gathering import loop_client, retry_outages
from markscheme.schema import Group, Rollout
from markscheme.text import replace_invalid
from markscheme.vocabulary import ReusePolicy


def rubric(
    *, rubric_id: str | None = None, reuse: ReusePolicy = "frozen", url: str | None = None
) -> Any:
    """Return a scorer: the rubric's reward, with the missed criteria as its explanation.

    What is not known is `Score.unscored`, which metrics leave out.

    Args:
        rubric_id: The rubric of all samples; default: the sample's `metadata["rubric_id"]`, else
            the newest of its prompt.
        reuse: `frozen`: only rubrics that exist; `if_fresh` also induces one where there is none.
        url: The service's address; default: `MARKSCHEME_URL`.
    """
    return _scorer()(rubric_id=rubric_id, reuse=reuse, url=url)


@cache
def _scorer() -> Any:
    from inspect_ai.scorer import Score, mean, scorer, stderr  # type: ignore[import-not-found]

    @scorer(metrics=[mean(), stderr()], name="rubric")  # type: ignore[untyped-decorator]
    def made(rubric_id: str | None, reuse: ReusePolicy, url: str | None) -> Any:
        async def score(state: Any, target: Any) -> Any:
            group = Group(
                id=f"{state.sample_id}",
                prompt=state.input_text,
                rubric_id=rubric_id or state.metadata.get("rubric_id"),
                rollouts=[
                    Rollout(id=f"e{state.epoch}", text=replace_invalid(state.output.completion))
                ],
            )
            client = loop_client(url)
            batch = await retry_outages(lambda: client.score([group], reuse=reuse))
            scored, [rollout] = batch.groups[0], batch.groups[0].rollouts
            if rollout.reward is None:
                return Score.unscored(explanation=f"unscored: {rollout.reason}")
            return Score(
                value=rollout.reward,
                explanation="\n".join(rollout.feedback),
                metadata={
                    "rubric_id": scored.rubric.id if scored.rubric else None,
                    "verdicts": {each.criterion_id: each.met for each in rollout.verdicts},
                },
            )

        return score

    return made
