"""The commands of runs against a real service."""

from pathlib import Path

from fakes.shell import command
from markscheme import Client


def test_a_scored_run_is_listed_watched_and_examined(
    service: str, client: Client, tmp_path: Path
) -> None:
    check = {"kind": "max_words", "value": 3}
    criteria = [{"text": "It uses at most 3 words.", "points": 1, "check": check}]
    rubric = client.create_rubric("Count.", criteria)
    for step in range(3):
        rollouts = ["one two", "one two three four five"]
        group = {"prompt": "Count.", "rollouts": rollouts, "rubric_id": rubric.id}
        client.score([group], run={"id": "night 1/b", "step": step})
    client.put_run("night 1/b", state="finished", steps=3)

    def shown(*words: str) -> str:
        done = command(*words, directory=tmp_path, settings={"url": service})
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = shown("runs")
    assert "night 1/b" in listed
    assert "3 of 3" in listed
    assert "▅▅▅" in listed
    watched = shown("runs", "watch", "night 1/b")
    assert watched.startswith("step 3 of 3  reward 0.50  not known 0/6  finished")
    assert "Nothing needs a look." in shown("findings", "night 1/b")
    address = shown("open", "night 1/b", "--no-browser").strip()
    assert address == f"{service}/pages/runs/night%201%2Fb"
