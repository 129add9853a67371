"""Addresses of pages."""

from typing import Any
from urllib.parse import urlencode

from markscheme.names import path_segment
from markscheme.schema import Finding


def path(*parts: str, **query: Any) -> str:
    """Return an address below `/pages/`, without a leading slash.

    `None` leaves a value of the query out; a list repeats its name.
    """
    stated = {name.rstrip("_"): value for name, value in query.items() if value is not None}
    address = "/".join(map(path_segment, parts))
    return f"{address}?{urlencode(stated, doseq=True)}" if stated else address


def finding_address(run_id: str, finding: Finding) -> str:
    """Return the address of the groups that show a finding."""
    chosen = finding.groups
    return path(
        "runs",
        run_id,
        first_step=chosen.first_step,
        last_step=chosen.last_step,
        criterion=chosen.criterion,
        sort=None if chosen.sort == "newest" else chosen.sort,
    )
