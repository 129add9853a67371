"""The rubric's reward in TRL's own trainer: beside other rewards, in evaluation, on processes."""

import json
from pathlib import Path

import pytest

from train.forked import run_together
from train.plain_trl import main, train

pytestmark = pytest.mark.filterwarnings(
    "ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"
)


def test_a_null_beside_another_reward_is_no_number_and_an_evaluation_has_its_own_group_size(
    tmp_path: Path,
) -> None:
    trainer, client = train(
        tmp_path, 4, num_generations_eval=2, per_device_eval_batch_size=4, eval_strategy="no"
    )
    assert trainer.advantages == pytest.approx([0.0] * 4)
    logged = trainer.state.log_history[0]
    assert logged["rewards/rubric/mean"] == pytest.approx(0.8)
    assert logged["rewards/brevity/mean"] == pytest.approx(0.5)
    client.calls.clear()
    evaluated = trainer.evaluate()
    assert [[len(g.rollouts) for g in made["groups"]] for made in client.calls] == [[2, 2]] * 2
    assert evaluated["eval_rewards/rubric/mean"] == pytest.approx(0.8)


def test_together_is_null_where_the_rubric_is_and_async_rewards_run_beside_it(
    tmp_path: Path,
) -> None:
    trainer, _ = train(tmp_path, 4, together=True)
    assert trainer.advantages == pytest.approx([0.0] * 4)
    logged = trainer.state.log_history[0]
    assert logged["rewards/together/mean"] == pytest.approx(2 * 0.5 + 0.8 + 0.25)
    assert logged["together/rubric"] == pytest.approx(0.8)
    assert logged["together/politeness"] == pytest.approx(0.25)
    assert logged["rubric/unscored_rate"] == 0.25


@pytest.mark.parametrize("together", [False, True], ids=["beside", "together"])
def test_two_processes_with_two_rows_each_ask_once_for_one_group(
    tmp_path: Path, together: bool
) -> None:
    run_together(main, tmp_path, together, processes=2, errors=tmp_path / "errors")
    first, second = (json.loads((tmp_path / f"facts-{rank}.json").read_text()) for rank in range(2))
    assert (first["groups"], second["groups"]) == ([[4]], [])
    assert first["unscored"] == 0.25
    assert [*first["advantages"], *second["advantages"]] == pytest.approx([0.0] * 4)
