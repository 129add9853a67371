"""Run Schemathesis on the service's OpenAPI document, with and without a key.

Slow: ``make fuzz``.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from markscheme_server.store.gathering import GroupState


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "key"), [(1, None), (2, "the operator's own key")])
def test_the_service_keeps_its_contract(
    seed: int,
    key: str | None,
    serve: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run all checks but one: a body can fit the schema yet be invalid (duplicate group ids)."""
    # Nobody sends the rest of a group: without this each of its rollouts would be waited for.
    monkeypatch.setattr(GroupState, "is_due", True)
    url = serve(api_key=key, key_pepper="a pepper for the tests" if key else None)
    # A deadline of a millisecond is answered 503, as documented, and that counts as a failure here.
    presented = [
        "-H",
        "X-Deadline-Ms: 60000",
        *(["-H", f"Authorization: Bearer {key}"] if key else []),
    ]
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{url}/openapi.json",
            "--phases",
            "examples,coverage,fuzzing",
            "-n",
            "40",
            "--checks",
            "all",
            "--exclude-checks",
            # Without any key the service asks for none, whatever the document says of keys.
            "positive_data_acceptance" if key else "positive_data_acceptance,ignored_auth",
            "--seed",
            str(seed),
            *presented,
        ],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:]
