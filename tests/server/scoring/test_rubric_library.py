"""Who sees a rubric, and what of it is shown, over both databases."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from markscheme import schema
from markscheme.vocabulary import SCOPES
from markscheme_server.accounts.budgets import BudgetService
from markscheme_server.config import Settings
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.rubric import Criterion
from markscheme_server.errors import Forbidden, NotFound, Unprocessable
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.rubric_library import RubricLibrary
from markscheme_server.scoring.rubrics import Freshness, RubricService
from markscheme_server.store.audit import Actor
from markscheme_server.store.maintenance.migrate import migrate
from markscheme_server.store.rubrics import Search
from markscheme_server.store.store import Store

RED, BLUE = (Caller(team, frozenset(SCOPES)) for team in ("red", "blue"))
PROVENANCE = {"rubricator": "judge@1", "template": "1", "run": "secret", "teacher_keys": ["k" * 64]}


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    made = Store(Settings(_env_file=None, database_url=database_url).sqlalchemy_url)
    await migrate(made.database)
    yield made
    await made.close()


@pytest.fixture
def library(store: Store) -> RubricLibrary:
    inductions = RubricService(store, Freshness(8, 0.9), BudgetService(store.budgets, store.ledger))
    return RubricLibrary(
        store.rubrics, store.rubric_versions, store.lineage, inductions, Judges({}, {})
    )


@pytest.fixture
async def versions(store: Store, library: RubricLibrary) -> list[schema.Rubric]:
    """Two versions of an induced rubric of red, of which the organisation sees the second."""
    made = []
    for words in ("first", "second"):
        saved = await store.rubric_versions.save(
            team="red",
            prompt=[{"role": "user", "content": "p"}],
            criteria=[Criterion("c1", words, 1)],
            origin="induced",
            provenance=PROVENANCE,
            actor=Actor("red"),
        )
        made.append(await library.get(RED, saved.id))
    shared = schema.RubricPatch(visibility="organisation", shared_with=["green"])
    return [made[0], await library.change(RED, made[1].id, shared)]


async def test_its_own_team_sees_all_of_a_rubric(versions: list[schema.Rubric]) -> None:
    first, second = versions
    assert second.parent_id == first.id
    assert second.provenance.run == "secret"
    assert second.shared_with == ["green"]


async def test_another_team_sees_neither_parent_nor_runs_nor_texts(
    library: RubricLibrary, versions: list[schema.Rubric]
) -> None:
    first, second = versions
    shown = await library.get(BLUE, second.id)
    assert (shown.parent_id, shown.shared_with) == (None, [])
    assert shown.provenance == schema.Provenance(rubricator="judge@1", template="1")
    page = await library.list_rubrics(BLUE, Search())
    assert page.data == [shown]
    lineage = await library.lineage(BLUE, second.id)
    told: dict[str, Any] = {node.id: node for node in lineage.nodes}
    assert first.id not in told
    assert told[second.id].run is None
    assert not [node for node in lineage.nodes if node.kind == "response"]


async def test_a_rubric_that_is_not_visible_is_not_found(
    library: RubricLibrary, versions: list[schema.Rubric]
) -> None:
    private = versions[0].id
    for rubric_id in (private, "unknown", "nul\x00"):
        with pytest.raises(NotFound):
            await library.get(BLUE, rubric_id)
        with pytest.raises(NotFound):
            await library.change(BLUE, rubric_id, schema.RubricPatch(retired=True))
        with pytest.raises(NotFound):
            await library.draft_fork(BLUE, rubric_id, schema.RubricFork())
        with pytest.raises(NotFound):
            await library.export(BLUE, rubric_id, "native")


async def test_only_its_own_team_changes_a_rubric(
    library: RubricLibrary, versions: list[schema.Rubric]
) -> None:
    with pytest.raises(Forbidden):
        await library.change(BLUE, versions[1].id, schema.RubricPatch(retired=True))


async def test_a_fork_copies_public_provenance_and_an_edit_copies_none(
    library: RubricLibrary, versions: list[schema.Rubric]
) -> None:
    source = versions[1]
    copy = await library.save(BLUE, await library.draft_fork(BLUE, source.id, schema.RubricFork()))
    assert copy.provenance == schema.Provenance(rubricator="judge@1", template="1")
    edit = schema.RubricFork(criteria=[schema.Criterion(text="other", points=2)])
    edited = await library.save(BLUE, await library.draft_fork(BLUE, copy.id, edit))
    assert edited.provenance == schema.Provenance()
    assert (edited.version, edited.parent_id) == (2, copy.id)


ROW = {
    "question": "Why?",
    "rubric": [{"title": "Cause", "description": "Names the cause.", "weight": 2}],
    "reference_answer": "Because.",
}


FIRST: dict[str, Any] = {"text": "Names the cause.", "points": 2}


async def bring(library: RubricLibrary, caller: Caller, **change: Any) -> schema.Rubric:
    payload = schema.RubricImport(format="rar", content=ROW | change)
    return await library.save(caller, await library.draft_import(payload))


async def test_metadata_is_stored_and_shown_to_its_own_team(library: RubricLibrary) -> None:
    made = await bring(library, RED)
    assert made.metadata["rar"]["reference_answer"] == "Because."
    assert made.criteria[0].metadata == {"rar": {"title": "Cause"}}
    assert await library.get(RED, made.id) == made
    assert (await library.list_rubrics(RED, Search())).data == [made]
    assert (await library.export(RED, made.id, "rar")).content == ROW


async def test_metadata_changes_neither_hash_nor_version(library: RubricLibrary) -> None:
    plain = await library.save(
        RED,
        await library.draft_create(
            schema.RubricCreate(
                prompt="Why?",
                criteria=[schema.Criterion(text="Names the cause.", points=2)],
                metadata={"note": [1, {"a": None}]},
            )
        ),
    )
    again = await bring(library, RED, reference_answer="Since.")
    assert (again.id, again.version, again.content_hash) == (plain.id, 1, plain.content_hash)
    assert again.metadata["note"] == [1, {"a": None}]
    assert again.metadata["rar"]["reference_answer"] == "Since."
    newer = await bring(library, RED, reference_answer="Thus.")
    assert (newer.id, newer.metadata["rar"]["reference_answer"]) == (plain.id, "Thus.")
    assert newer.criteria[0].metadata == {"rar": {"title": "Cause"}}
    assert await library.get(RED, plain.id) == newer


async def test_another_team_sees_no_metadata_and_copies_none(library: RubricLibrary) -> None:
    made = await bring(library, RED)
    await library.change(RED, made.id, schema.RubricPatch(shared_with=["blue"]))
    shown = await library.get(BLUE, made.id)
    assert (shown.metadata, shown.criteria[0].metadata) == ({}, {})
    assert shown.provenance.format == "rar"
    assert "reference_answer" not in (await library.export(BLUE, made.id, "rar")).content
    copied = await library.save(BLUE, await library.draft_fork(BLUE, made.id, schema.RubricFork()))
    assert (copied.team, copied.metadata, copied.criteria[0].metadata) == ("blue", {}, {})


async def test_a_new_version_keeps_the_metadata_unless_it_brings_its_own(
    library: RubricLibrary,
) -> None:
    made = await bring(library, RED)
    edit = schema.RubricFork(criteria=[schema.Criterion(text="Names it.", points=1)])
    kept = await library.save(RED, await library.draft_fork(RED, made.id, edit))
    assert kept.metadata == made.metadata
    assert (await library.export(RED, kept.id, "rar")).content == ROW | {
        "rubric": [{"title": "c1", "description": "Names it.", "weight": 1}]
    }
    own = schema.RubricFork(
        criteria=[schema.Criterion(text="Says it.", points=1)], metadata={"note": 1}
    )
    changed = await library.save(RED, await library.draft_fork(RED, made.id, own))
    assert changed.metadata == {"note": 1}


@pytest.mark.parametrize("place", ["rubric", "criterion"])
async def test_metadata_that_adds_up_to_too_much_is_refused_and_the_rubric_stays(
    library: RubricLibrary, place: str
) -> None:
    def draft(name: str) -> schema.RubricCreate:
        large = {name: "x" * (schema.MAX_METADATA_BYTES // 2)}
        own = {"rubric": ({}, large), "criterion": (large, {})}[place]
        criterion = schema.Criterion(text="Names the cause.", points=2, metadata=own[0])
        return schema.RubricCreate(prompt="Why?", criteria=[criterion], metadata=own[1])

    made = await library.save(RED, await library.draft_create(draft("a")))
    with pytest.raises(Unprocessable, match="more than a rubric may have"):
        await library.save(RED, await library.draft_create(draft("b")))
    assert await library.get(RED, made.id) == made


async def test_importing_again_what_was_edited_since_finds_its_version(
    library: RubricLibrary,
) -> None:
    made = await bring(library, RED)
    edit = schema.RubricFork(criteria=[schema.Criterion(text="Names two causes.", points=2)])
    edited = await library.save(RED, await library.draft_fork(RED, made.id, edit))
    assert (await bring(library, RED)).id == made.id
    assert (await bring(library, BLUE)).id != made.id
    by_hand = schema.RubricCreate(prompt="Why?", criteria=[schema.Criterion(**FIRST)])
    created = await library.save(RED, await library.draft_create(by_hand))
    assert [each.version for each in (made, edited, created)] == [1, 2, 3]
    await library.change(RED, made.id, schema.RubricPatch(retired=True))
    await library.change(RED, created.id, schema.RubricPatch(retired=True))
    assert (await bring(library, RED)).version == 4


async def test_rubrics_that_come_together_are_stored_together_and_each_gets_its_own(
    library: RubricLibrary, store: Store
) -> None:
    large = {"reference_answer": "x" * (schema.MAX_METADATA_BYTES - 2000)}
    kept = await library.change(
        RED,
        (await bring(library, RED, **large)).id,
        schema.RubricPatch(shared_with=["green"]),
    )
    too_large = schema.RubricCreate(
        prompt="Why?", criteria=[schema.Criterion(**FIRST)], metadata={"more": "y" * 3000}
    )
    results = await asyncio.gather(
        *(bring(library, team, question=f"{n}?") for team in (RED, BLUE) for n in range(5)),
        library.save(RED, await library.draft_create(too_large)),
        bring(library, RED, question="0?", rubric=[{"title": "", "description": "B", "weight": 1}]),
        bring(library, RED, **large),
        return_exceptions=True,
    )
    *new, refused, second, existing = results
    assert isinstance(refused, Unprocessable)
    assert existing == kept
    assert isinstance(second, schema.Rubric)
    assert (second.version, second.parent_id) == (2, new[0].id)  # type: ignore[union-attr]
    for caller, made in zip([RED] * 5 + [BLUE] * 5, new, strict=True):
        assert isinstance(made, schema.Rubric)
        assert (made.version, made.team) == (1, caller.team)
        assert await library.get(caller, made.id) == made
    entries, _ = await store.audit.page(
        team="blue", subject=None, action="rubric.imported", after=None, limit=100
    )
    assert {entry.subject for entry in entries} == {f"rubric:{made.id}" for made in new[5:]}  # type: ignore[union-attr]
