"""`markscheme`, as a script, with other values for constants of the service.

`CONSTANTS` in the environment holds them as JSON: `{"markscheme_server.app.CLAIM_LEASE_S": 1}`. The
workers of `serve --workers` import this module again and so get the same values.
"""

import json
import os
import pkgutil

from markscheme.cli import main

for name, value in json.loads(os.environ["CONSTANTS"]).items():
    module, _, constant = name.rpartition(".")
    setattr(pkgutil.resolve_name(module), constant, value)

if __name__ == "__main__":
    main()
