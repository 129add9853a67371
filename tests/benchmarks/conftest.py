"""The benchmarks are packages of their own folder; nothing else needs them on the path."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # on import it warns, which here would be an error
