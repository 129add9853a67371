"""Rollouts that call tools, in TRL's trainer and in ours: what is judged, and what is learnt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from markscheme import Client
from markscheme.integrations.trl import RubricReward
from markscheme_train.config import build_config
from markscheme_train.optimiser_step import count_by_step
from markscheme_train.trainer import MarkschemeTrainer
from train.tiny import ScriptedClient
from train.tools import scripted_student, tool_call, tool_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"
)
PROMPT = [{"role": "user", "content": "How many people live in Oslo?"}]
ASKED = tool_call("population", city="Oslo")


def population(city: str) -> str:
    """Look up how many people live in a city.

    Args:
        city: Name of the city.

    Returns:
        The number of people.
    """
    return f"register: {city} 709037"


def student_script(row: int, prompt: str) -> str:
    """Every other rollout looks it up before it replies."""
    if "<tool_response>" in prompt:
        return "About seven hundred thousand."
    return "A million." if row % 2 else ASKED


def test_a_step_of_trls_trainer_with_tools_scores_the_whole_trajectory(
    tmp_path: Path, client: Client
) -> None:
    rubric = client.create_rubric(
        PROMPT,
        [
            {
                "text": "The register was asked for the number.",
                "points": 10,
                "check": {"kind": "contains", "texts": ["709037"], "view": "full"},
            }
        ],
    )
    tokenizer = tool_tokenizer()
    student = scripted_student(tokenizer, student_script)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    reward = RubricReward(client, num_generations=4, run_id="tools", view="full")
    trainer = GRPOTrainer(
        student,
        reward_funcs=[reward],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            num_generations=4,
            per_device_train_batch_size=4,
            max_steps=1,
            max_completion_length=512,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "rubric_id": rubric.id}] * 2),
        processing_class=tokenizer,
        tools=[population],
    )
    trainer.train()
    assert reward.last is not None
    assert reward.last.rewards == [1.0, 0.0, 1.0, 0.0]
    assert {score.view for score in reward.last.row_scores} == {"full"}
    assert reward.last.origins == {"given": 1}
    assert [message["role"] for message in reward.rows[0].completion] == [
        "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert trainer.state.log_history[0]["rewards/rubric/mean"] == 0.5
    assert trainer.state.log_history[0]["tools/call_frequency"] == 0.5
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_self_teacher_reads_a_trajectory_and_teaches_only_what_the_student_wrote(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """In every group one rollout that looked it up is good; another that did not learns from it."""
    tokenizer = tool_tokenizer()
    config = build_config(
        settings
        | {"preset": "srpo", "distillation_top_k": 5, "max_completion_length": 512}
        | {"per_device_train_batch_size": 4}
    )
    scores = [1.0, 0.0, 0.0, 0.6]
    client = ScriptedClient(lambda place, rollout: scores[place])
    trainer = MarkschemeTrainer(
        scripted_student(tokenizer, student_script),
        RubricReward(client, num_generations=4, run_id="tools"),
        config,
        train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 2),
        processing_class=tokenizer,
        tools=[population],
    )
    assert trainer.distillation is not None
    read: list[str] = []
    tokens = trainer.distillation._tokens

    def record(prompt: Any) -> Any:
        ids = tokens(prompt)
        read.append(tokenizer.decode(ids))
        return ids

    trainer.distillation._tokens = record  # type: ignore[method-assign]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions([{"prompt": PROMPT} for _ in range(4)])
    assert batch["routed"].tolist() == [False, True, True, False]
    # Rows 0 and 2 called the tool: its result is in the rollout, and nobody learns it.
    own = (batch["completion_mask"] * batch["tool_mask"]).bool()
    results = batch["completion_mask"].bool() & ~own
    assert [bool(row.any()) for row in results] == [True, False, True, False]
    assert "709037" in tokenizer.decode(batch["completion_ids"][2][results[2]])
    assert "709037" not in tokenizer.decode(batch["completion_ids"][2][own[2]])
    assert len(batch["teacher_states"][2]) == own[2].sum()
    assert (batch["teacher_entropy"][2] > 0).tolist() == own[2].tolist()
    assert batch["num_items_in_batch"] == own.sum()
    for prompt in read:
        assert '"name": "population"' in prompt.partition("<|im_start|>user")[0]  # the tools
        assert prompt.endswith("<|im_start|>assistant\n")
    # Row 0 is the control of the group: it is shown row 3, which called nothing.
    shown = ["[Call of population]" in prompt for prompt in read]
    assert sorted(shown) == [False, True, True]
    for prompt in read:
        called = "[Result of population]\nregister: Oslo 709037" in prompt
        assert called == ("[Call of population]" in prompt)
    count_by_step(trainer, [batch])
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.isfinite()
