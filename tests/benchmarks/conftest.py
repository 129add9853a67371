"""The benchmarks are packages of their own folder; nothing else needs them on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
