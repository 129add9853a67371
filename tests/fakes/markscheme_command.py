"""The command `markscheme` for shell scripts, forked from the test's fork server."""

import os
import sys
from pathlib import Path

from fakes.fork_server import ForkedProcess

sys.exit(
    ForkedProcess(
        sys.argv[1:],
        cwd=Path.cwd(),
        env=os.environ,
        output=sys.stdout.buffer,
        errors=sys.stderr.buffer,
    ).wait()
)
