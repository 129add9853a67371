"""Test that a rubric is sent again only when it has changed."""

import httpx

from markscheme import Client


def test_a_rubric_that_the_caller_has_is_not_sent_again(client: Client, service: str) -> None:
    rubric = client.create_rubric("Name a colour.", [{"text": "It names one.", "points": 1}])
    url = f"{service}/v1/rubrics/{rubric.id}"
    etag = httpx.get(url).headers["etag"]
    for known in (etag, f'"of another", {etag}'):
        again = httpx.get(url, headers={"If-None-Match": known})
        assert (again.status_code, again.headers["etag"], again.content) == (304, etag, b"")
    assert httpx.get(url, headers={"If-None-Match": '"of another"'}).json()["id"] == rubric.id
    client.change_rubric(rubric.id, tags=["new"])
    changed = httpx.get(url, headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["tags"]) == (200, ["new"])
