"""What replays refuse before they begin, and what a process remembers of them."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from fakes.processes import PATIENCE_S
from markscheme.schema import ReplayRequest
from markscheme_server.errors import NotFound, Unprocessable
from markscheme_server.scoring import replay_worker, replays
from markscheme_server.scoring.replay_groups import GroupReplayer, PlannedGroup
from markscheme_server.scoring.replay_worker import ReplayWorker
from markscheme_server.scoring.replays import ReplayService
from markscheme_server.store.replays import ReplayStore, StoredReplay
from server.scoring.in_process import RED, Scoring, until


@pytest.fixture
async def service(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ReplayService]:
    monkeypatch.setattr(replay_worker, "POLL_S", 0.05)
    store = scoring.store
    worker = ReplayWorker(store.replays, store.claims, scoring.replayer)
    yield ReplayService(
        store.replays,
        store.runs,
        store.rubrics,
        store.lineage,
        scoring.judges,
        scoring.replayer,
        worker,
    )
    await worker.aclose(PATIENCE_S)


async def test_a_run_whose_judge_is_gone_is_replayed_by_another_one_only(
    scoring: Scoring, service: ReplayService
) -> None:
    await scoring.score("good", rubric=await scoring.rubric())
    scoring.model.verifier_identity = "a newer model"
    for ask in (service.estimate, service.begin):
        with pytest.raises(Unprocessable, match="name another one") as gone:
            await ask(RED, ReplayRequest(run_id="run", verify="group"))
        assert (gone.value.code, gone.value.param) == ("judge_gone", "judge")
    assert (await service.estimate(RED, ReplayRequest(run_id="run", judge="model"))).groups == 1


async def test_an_estimate_leaves_out_groups_whose_rubric_is_no_longer_shared(
    scoring: Scoring, service: ReplayService
) -> None:
    other = await scoring.rubric(team="blue")
    await scoring.share(other)
    await scoring.score("good", rubric=other, step=0)
    await scoring.score("bad", "worse", rubric=await scoring.rubric(), step=1)
    await scoring.forget_rubric(other)
    found = await service.estimate(RED, ReplayRequest(run_id="run", verify="group"))
    assert (found.groups, found.sampled_groups, found.rollouts, found.calls) == (1, 2, 2, 1)


async def test_an_estimate_under_a_rubric_that_is_withdrawn_meanwhile_does_not_find_it(
    scoring: Scoring, service: ReplayService, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubric = await scoring.rubric(team="blue")
    await scoring.share(rubric)
    await scoring.score("good", rubric=await scoring.rubric())
    plan = GroupReplayer.plan

    async def withdrawn(
        self: GroupReplayer, replay: StoredReplay, assignment_id: str
    ) -> PlannedGroup | None:
        await scoring.forget_rubric(rubric)
        return await plan(self, replay, assignment_id)

    monkeypatch.setattr(GroupReplayer, "plan", withdrawn)
    with pytest.raises(NotFound, match="no longer visible") as gone:
        await service.estimate(RED, ReplayRequest(run_id="run", rubric_id=rubric.id))
    assert (gone.value.code, gone.value.param) == ("rubric_not_found", "rubric_id")


async def test_a_full_cache_of_comparisons_changes_none(
    scoring: Scoring, service: ReplayService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "MAX_COMPARISONS", 1)
    read, results = [], ReplayStore.results

    async def counted(self: ReplayStore, team: str, replay_id: str) -> Sequence[Any]:
        read.append(replay_id)
        return await results(self, team, replay_id)

    monkeypatch.setattr(ReplayStore, "results", counted)
    await scoring.score("good", "bad", rubric=await scoring.rubric())
    request = ReplayRequest(run_id="run", verify="group")
    one, two = [(await service.begin(RED, request)).id for _ in range(2)]

    async def finished() -> bool:
        return (await service.replay(RED, two)).state == "finished"

    await until(finished)
    read.clear()
    shown = [(await service.replay(RED, each)).comparison for each in (one, one, two, two, one)]
    assert {each.after for each in shown} == {0.5}
    assert read == [one, two, one]
