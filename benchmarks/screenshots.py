"""Pictures of the pages for the documentation, of the run that `make demo` left in `build/demo`.

Run by `make screenshots` with an interpreter that has Playwright; the browser is Debian's Chromium.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import sync_playwright

from markscheme import Client
from markscheme_train.demo.service import running_service

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SERVE = (sys.executable, "-c", "from markscheme.cli import main; main()", "serve", "--port", "0")
LARGEST = 200_000
"""Bytes of a picture, at most: the README loads one."""


class Picture(NamedTuple):
    """One picture: `page` is "run" or "group"; `width` and `height` are CSS pixels."""

    name: str
    page: str
    width: int
    height: int
    scheme: str = "light"
    scale: float = 1.0


PICTURES = (
    Picture("run-light", "run", 1280, 1000),
    Picture("run-dark", "run", 1280, 1000, scheme="dark"),
    Picture("group", "group", 1280, 1000),
    Picture("run-phone", "run", 390, 844, scale=1.5),
)


def addresses(url: str) -> dict[str, str]:
    """Return the addresses of the demo's run and of its group with the widest spread."""
    with Client(url) as client:
        runs = client.runs(limit=1).data
        if not runs:
            raise SystemExit("the demo's service holds no run: run `make demo` first")
        run = runs[0]
        group = client.run_groups(run.id, sort="spread", limit=1).data[0]
    return {"run": f"{url}/pages/runs/{run.id}", "group": f"{url}/pages/groups/{group.id}"}


def main(workdir: Path) -> None:
    """Write the pictures. `workdir`: the folder that was given to the demo."""
    home = workdir / "demo" / "service"
    if not home.is_dir():
        raise SystemExit(f"there is no {home}: run `make demo` first")
    with running_service(home, command=SERVE) as url, sync_playwright() as started:
        pages = addresses(url)
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for picture in PICTURES:
            page = browser.new_page(
                viewport={"width": picture.width, "height": picture.height},
                color_scheme=picture.scheme,
                device_scale_factor=picture.scale,
                locale="en-GB",
            )
            page.goto(pages[picture.page])
            file = IMAGES / f"{picture.name}.png"
            size = len(page.screenshot(path=file, animations="disabled"))
            if size > LARGEST:
                raise SystemExit(f"{file} has {size:,} bytes, more than {LARGEST:,}")
            print(f"{file.relative_to(ROOT)}: {size:,} bytes")
            page.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build")
