"""What is shown of a stored group whose verdicts, texts or rubric are not there."""

import pytest
import sqlalchemy as sa

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.hashing import messages_of, prompt_key
from markscheme_server.judge.base import JudgeFailure, Verification, VerifyTask
from markscheme_server.judge.openai import OpenAIJudge
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.store.assignments import GroupRef
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.tables import rollouts
from server.scoring.in_process import PROMPT, RED, Scoring


async def test_a_group_that_is_being_scored_is_shown_without_rollouts_and_teachers(
    scoring: Scoring,
) -> None:
    rubric = await scoring.rubric()
    ref = GroupRef("red", "run", 0, "g0", prompt_key(messages_of(PROMPT)))
    assigned = await scoring.store.assignments.assign(
        ref, prompt=None, rubric_id=rubric.id, origin="given", reuse="frozen", verify="rollout"
    )
    shown = await scoring.groups.group(RED, assigned.id)
    assert (shown.rubric.id, shown.criteria[0].text) == (rubric.id, "It is good.")
    assert (shown.rollouts, shown.teachers, shown.mean, shown.judge) == ([], [], None, None)


async def test_an_unknown_verdict_is_shown_without_what_was_said_of_another(
    scoring: Scoring,
) -> None:
    async def down(_task: VerifyTask) -> Verification:
        raise JudgeFailure(UnscoredReason.UNAVAILABLE, "down")

    rubric = await scoring.rubric()
    scoring.model.verify_as = down
    await scoring.score("good", rubric=rubric)
    (group,) = await scoring.store.replays.run_groups("red", "run")
    (rollout,) = (await scoring.groups.group(RED, group.id)).rollouts
    assert (rollout.reward, rollout.reason) == (None, "unavailable")
    (verdict,) = rollout.verdicts
    assert (verdict.met, verdict.applicable, verdict.evidence) == (None, True, None)
    assert not verdict.evidence_is_quotation


class Asked(OpenAIJudge):
    """A model that is only looked up."""

    def __init__(self) -> None:
        """Needs no endpoint."""

    verifier_identity = "model"  # type: ignore[assignment]


@pytest.mark.parametrize("gone", ["rubric", "text"])
async def test_the_judges_prompt_is_not_made_up_when_a_part_of_it_is_gone(
    gone: str, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric = await scoring.rubric(team="blue")
    await scoring.share(rubric)
    await scoring.score("good", rubric=rubric)
    (group,) = await scoring.store.replays.run_groups("red", "run")
    store = scoring.store
    if gone == "rubric":
        await scoring.forget_rubric(rubric)
    else:
        responses = store.run_groups.responses

        async def pruned(team: str, assignment: str, *more: object) -> dict[str, object]:
            async with store.database.writing(ALL_TEAMS) as connection:
                await connection.execute(sa.delete(rollouts))
            return dict(await responses(team, assignment, *more))  # type: ignore[arg-type]

        monkeypatch.setattr(store.run_groups, "responses", pruned)
    service = RunGroupService(
        store.runs, store.run_groups, store.rubrics, scoring.histories, [Asked()]
    )
    shown = await service.judge_prompt(RED, group.id, "r0")
    assert (shown.messages, shown.reason) == (None, "The rubric or the text is no longer here.")
