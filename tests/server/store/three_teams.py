"""Three teams with a row of every kind in every table."""

from typing import Any

import sqlalchemy as sa

from markscheme_server.accounts.auth import Authenticator
from markscheme_server.domain.hashing import prompt_key, text_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.usage import JudgeUsage, to_nano
from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.store.assignments import GroupOutcome, GroupRef, ScoredRollout
from markscheme_server.store.audit import Actor
from markscheme_server.store.budgets import HoldRequest
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.gathering import Arrival, GatheredScore, GroupState
from markscheme_server.store.idempotency import RequestKey, Started
from markscheme_server.store.ledger import CallDescription, JudgeCall
from markscheme_server.store.store import Store
from markscheme_server.store.tables import (
    past_groups,
    past_usage,
    repeat_verdicts,
    replay_groups,
    replays,
    run_blocks,
    run_records,
    second_verdicts,
)
from markscheme_server.store.verdicts import JudgeReply, StoredVerdict
from markscheme_server.wire import from_rubric

TEAMS = ("red", "blue", "green")


COMMON = [{"role": "user", "content": "Name a colour."}]
"""A prompt that every team sends."""


def word(team: str) -> str:
    """Return the word in all of the team's texts; names of its runs use another word."""
    return f"canary{team}"


def run_id(team: str) -> str:
    return f"run-of-{team}"


def identity(store: Store) -> Authenticator:
    return Authenticator(store.teams, operator_key=None, pepper="a pepper for the tests")


async def make_rubric(
    store: Store, team: str, prompt: list[dict[str, str]], words: str, **more: Any
) -> Rubric:
    return await store.rubric_versions.save(
        team=team,
        prompt=prompt,
        criteria=[
            Criterion(
                "c1",
                f"{words} {word(team)}",
                1,
                source=word(team),
                metadata={"label": word(team)},
            )
        ],
        origin="induced",
        tags=[word(team)],
        metadata={"row": word(team)},
        provenance={"run": run_id(team), "teacher_keys": [text_key(word(team))]},
        actor=Actor(team),
        cost_usd=0.5,
        **more,
    )


async def group(
    store: Store, team: str, prompt: list[dict[str, str]], rubric_id: str, step: int, *texts: str
) -> None:
    place = GroupRef(team, run_id(team), step, f"group {word(team)}", prompt_key(prompt))
    made = await store.assignments.assign(
        place,
        prompt=prompt,
        rubric_id=rubric_id,
        origin="reused",
        reuse="if_fresh",
        verify="rollout",
    )
    await store.assignments.finish(
        team,
        made.id,
        GroupOutcome(
            [
                ScoredRollout(f"r{i} {word(team)}", text, False, 0.5, None)
                for i, text in enumerate(texts)
            ],
            3,
            0.25,
            run_id=run_id(team),
        ),
    )


def run_rows(team: str, rubric_id: str) -> list[sa.Insert]:
    """Return the insertion of a row of each kind that runs have beside groups."""
    own = {"team": team, "run_id": run_id(team)}
    said = own | {"judge": word(team), "created_at": now()}
    return [
        run_records.insert().values(own | {"step": 0, "metrics": "{}"}),
        run_blocks.insert().values(
            own
            | {"first_step": 0, "version": 1, "groups": 1, "pruned": 0}
            | {"figures": word(team).encode(), "details": b""}
        ),
        past_groups.insert().values(
            own | {"id": f"past {word(team)}", "step": 0, "rubric_id": rubric_id, "figures": "{}"}
        ),
        second_verdicts.insert().values(
            said
            | {
                "assignment_id": word(team),
                "rollout_id": word(team),
                "first_verdicts": "1",
                "verdicts": "0",
            }
        ),
        replays.insert().values(
            own
            | {"id": f"replay {word(team)}", "request": {"rubric_id": word(team)}}
            | {"state": "finished", "due_at": 0.0, "changed_at": now(), "created_at": now()}
        ),
        replay_groups.insert().values(
            {"replay_id": f"replay {word(team)}", "number": 0, "team": team}
            | {"assignment_id": word(team), "result": word(team)}
        ),
        repeat_verdicts.insert().values(
            said | {"id": new_id("rep"), "criterion_key": "c", "verdict_key": "v"}
        ),
    ]


async def answer(store: Store, team: str, key: str, body: str) -> None:
    address = RequestKey(team, f"/r/{word(team)}", key)
    begun = await store.idempotency.begin(address, "f" * 64)
    assert isinstance(begun, Started)
    await store.idempotency.finish(address, begun.owner, status=200, body=body)


async def gather(store: Store, team: str, name: str, score: str) -> None:
    """Store a scored group of one rollout that came in a request of its own; `name` is its id."""
    arrival = Arrival(
        team=team,
        group_id=text_key(f"{team} {name}"),
        terms=text_key(word(team)),
        size=2,
        wait_s=0,
        rollout_id=name,
        response=f"arrived {word(team)}",
        truncated=False,
    )
    assert isinstance(await store.gathering.arrive(arrival), GroupState)
    claim = await store.claims.acquire(arrival.group_id)
    assert claim is not None
    made = GatheredScore(1, 1, score, {name: word(team)})
    await store.gathering.finish(team, arrival.group_id, claim, made)


async def fill(store: Store) -> dict[str, Any]:
    """Store three teams with a row of every kind and links between them; red shares rubrics."""
    for team in TEAMS:
        await identity(store).create_team(team, actor=Actor())
        _, key = await identity(store).create_key(team, ["read"], label=word(team), actor=Actor())
        await store.teams.record_use(key.prefix)
    for team in TEAMS:
        own = [{"role": "user", "content": f"Tell of {word(team)}."}]
        first = await make_rubric(
            store, team, own, "first", induction=text_key(f"induction {team}")
        )
        second = await make_rubric(store, team, own, "second")
        assert second.parent_id == first.id
        await group(store, team, own, first.id, 0, f"once {word(team)}", "said by all")
        if team == "red":  # sent again with other words: nothing refers to the first ones any more
            await group(store, team, own, first.id, 0, f"otherwise {word(team)}", "said by all")
        await store.teachers.save(team, own, [f"taught {word(team)}"], f"model {word(team)}")
        await store.teachers.save(team, COMMON, ["said by all"])
        usage = JudgeUsage(1, 10, 5, cost=to_nano(0.1))
        verdict = StoredVerdict(
            text_key(f"v {team}"),
            "p",
            "c",
            "r",
            f"judge {word(team)}",
            StoredDecision(True, word(team), 0.1),
        )
        await store.verdicts.save(
            JudgeReply(
                team,
                [verdict],
                JudgeCall(
                    CallDescription(team, run_id(team), "verifier", "judge", ("c",), first.id),
                    usage,
                ),
            )
        )
        await answer(store, team, word(team), word(team))
        await gather(store, team, f"r {word(team)}", word(team))
        await store.budgets.put(
            team, run_id(team), hard_usd=9.0, soft_usd=None, window="day", actor=Actor(team)
        )
        assert (
            await store.budgets.hold(HoldRequest(new_id("hold"), team, run_id(team), to_nano(0.1)))
            == "granted"
        )
        async with store.database.writing(ALL_TEAMS) as connection:
            await connection.execute(
                past_usage.insert().values(
                    {c.name: 0 for c in past_usage.c}
                    | {
                        "id": new_id("use"),
                        "team": team,
                        "day": "2026-01-01",
                        "run_id": run_id(team),
                        "rubric_id": first.id,
                        "role": None,
                        "judge": word(team),
                    }
                )
            )
            for row in run_rows(team, first.id):
                await connection.execute(row)
    shared = {team: await make_rubric(store, team, COMMON, "common") for team in TEAMS}
    forked = shared["red"]
    used = await make_rubric(
        store, "red", [{"role": "user", "content": f"Used by others: {word('red')}"}], "used"
    )
    for rubric, change in (
        (forked, {"shared_with": ["blue"]}),
        (used, {"visibility": "organisation"}),
        (shared["blue"], {"shared_with": ["red", "green"]}),
    ):
        await store.rubrics.change(rubric.team, rubric.id, actor=Actor(rubric.team), **change)  # type: ignore[arg-type]
    fork = await store.rubric_versions.save(
        team="blue",
        prompt=COMMON,
        criteria=[Criterion("c1", word("blue"), 2)],
        origin="forked",
        provenance={},
        actor=Actor("blue"),
        parent=forked,
    )
    assert fork.parent_id == forked.id
    await answer(store, "blue", f"red's {word('blue')}", from_rubric(used).model_dump_json())
    await gather(store, "blue", f"scored by {word('red')}", from_rubric(used).model_dump_json())
    await group(store, "blue", COMMON, used.id, 7, f"by red's {word('blue')}")
    return {"tombstones": {forked.id, used.id}, "used": used, "fork": fork}
