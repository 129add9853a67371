"""The verdict cache of a process: it keeps what was used last."""

from markscheme_server.scoring.verdict_cache import VerdictCache


def test_it_keeps_the_most_recently_used() -> None:
    cache = VerdictCache(size=2)
    cache.save({"a": (True, "words", None), "b": (True, None, 0.1)})
    cache.find(["a"])
    cache.save({"c": (False, None, None)})
    assert cache.find(["a", "b", "c"]) == {"a": (True, "words", None), "c": (False, None, None)}
