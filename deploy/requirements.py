"""Print what the named extras of this project need, so that an image can fetch it before the code is copied in."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
extras = [need for extra in sys.argv[1:] for need in project["optional-dependencies"][extra]]
sys.stdout.write("".join(f"{need}\n" for need in [*project["dependencies"], *extras]))
