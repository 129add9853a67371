"""One page of a list that is made in memory."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

from markscheme_server.errors import NotFound

T = TypeVar("T")


def page_after(
    items: Iterable[T], key: Callable[[T], str], *, after: str | None, limit: int
) -> tuple[list[T], bool]:
    """Return the items that follow the one with the key `after`, and whether more exist.

    `None` begins with the first. Raises `NotFound` if no item has this key: beginning anew would
    show items twice, and an empty page would hide some.
    """
    rest = iter(items)
    if after is not None and all(key(item) != after for item in rest):
        raise unknown_after(after)
    page = list(islice(rest, limit + 1))
    return page[:limit], len(page) > limit


def unknown_after(after: str) -> NotFound:
    """Return the error of a list that does not have the item after which it was to go on."""
    return NotFound(
        f"{after!r} is not, or no longer, in this list: begin again without 'after'",
        code="after_not_found",
        param="after",
    )
