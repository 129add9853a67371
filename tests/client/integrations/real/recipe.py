"""The code of a page of `docs/integrations`, as a reader copies it."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[4] / "docs" / "integrations"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def recipe(page: str) -> dict[str, Any]:
    """Run a page's first block of Python; return the names that it defines."""
    names: dict[str, Any] = {"__name__": page.removesuffix(".md")}
    found = BLOCK.search((DOCS / page).read_text("utf-8"))
    assert found
    exec(compile(found[1], page, "exec"), names)
    return names
