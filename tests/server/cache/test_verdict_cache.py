"""The verdict cache of a process: it keeps what was used last."""

from markscheme_server.cache.verdicts import VerdictCache


def test_it_keeps_the_most_recently_used() -> None:
    cache = VerdictCache(size=2)
    cache.save({"a": (True, "words"), "b": (True, None)})
    cache.find(["a"])
    cache.save({"c": (False, None)})
    assert cache.find(["a", "b", "c"]) == {"a": (True, "words"), "c": (False, None)}
