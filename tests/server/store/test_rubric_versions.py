"""Saving rubrics as versions of their prompts, over both databases."""

import asyncio

from markscheme_server.domain.rubric import Criterion
from markscheme_server.store.audit import Actor
from markscheme_server.store.rubrics import Filters
from markscheme_server.store.store import Store


async def test_versions_of_a_prompt_are_numbered_under_concurrent_writers(store: Store) -> None:
    prompt = [{"role": "user", "content": "versions"}]
    saved = await asyncio.gather(
        *(
            store.rubric_versions.save(
                team="t",
                prompt=prompt,
                criteria=[Criterion("c1", f"text {i}", 1)],
                origin="imported",
                provenance={},
                actor=Actor("t"),
            )
            for i in range(6)
        )
    )
    assert sorted(r.version for r in saved) == [1, 2, 3, 4, 5, 6]
    newest = await store.rubrics.find_nearest("t", saved[0].prompt_key, Filters())
    assert newest is not None
    assert newest.version == 6
    assert newest.parent_id in {r.id for r in saved}
    again = await store.rubric_versions.save(
        team="t",
        prompt=prompt,
        criteria=newest.criteria,
        origin="imported",
        provenance={},
        actor=Actor("t"),
    )
    assert again.id == newest.id
    assert await store.rubrics.find("t", newest.id) == newest
    assert await store.rubrics.find("other", newest.id) is None
