"""``gpu.memory``: the memory of a GPU, reckoned from a model's sizes."""

from pathlib import Path

from gpu.memory import fsdp_bytes, table
from gpu.shapes import QWEN3_8B, TINY

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_guide_has_the_table_that_the_command_prints() -> None:
    assert "\n".join(table(QWEN3_8B, 8)) in GUIDE.read_text("utf-8")


def test_eight_billion_weights_leave_room_on_eight_gpus_of_80_gb() -> None:
    assert sum(fsdp_bytes(QWEN3_8B, 8).values()) < 60e9


def test_shards_become_smaller_with_the_gpus_and_gathered_weights_do_not() -> None:
    one, four = (list(fsdp_bytes(TINY, gpus).values()) for gpus in (1, 4))
    assert [round(a / b, 9) for a, b in zip(one, four, strict=True)] == [4, 4, 4, 4, 1, 1, 1]
