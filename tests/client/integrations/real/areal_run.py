"""AReaL's own `WorkflowExecutor` and group workflow with the recipe; a scripted engine."""

import json
import logging
import sys
from typing import Any

from areal.api import ModelRequest, ModelResponse
from areal.api.cli_args import GenerationHyperparameters, InferenceEngineConfig
from areal.infra.remote_inf_engine import GroupedRolloutWorkflow
from areal.infra.workflow_executor import WorkflowExecutor
from recipe import recipe
from tokenizer import byte_tokenizer

RubricWorkflow = recipe("areal.md")["RubricWorkflow"]
tokenizer = byte_tokenizer()
SIZE = 4


class Engine:
    """What the executor needs of an inference engine: gives the texts one after another."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def get_version(self) -> int:
        return 0

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        ids = tokenizer.encode(self.texts.pop(0) + "<|im_end|>", add_special_tokens=False)
        return ModelResponse(
            input_tokens=request.input_ids,
            output_tokens=ids,
            output_logprobs=[0.0] * len(ids),
            output_versions=[0] * len(ids),
        )


def reward_fn(*_rollout: Any, **_row: Any) -> float:
    raise AssertionError("the recipe replaces it")


engine = Engine()
executor = WorkflowExecutor(
    InferenceEngineConfig(consumer_batch_size=1, max_head_offpolicyness=100), engine
)
executor.initialize(logging.getLogger("areal"), train_data_parallel_size=1)
one = RubricWorkflow(reward_fn, GenerationHyperparameters(max_new_tokens=64), tokenizer, size=SIZE)
workflow = GroupedRolloutWorkflow(one, SIZE, logging.getLogger("areal"))


def rewards(texts: list[str]) -> list[float] | None:
    """Return the rewards of a group in the order of the texts, None if AReaL rejects it."""
    engine.texts = list(texts)
    row = {"messages": [{"role": "user", "content": sys.argv[1]}]}
    [rollouts] = [executor.wait_for_task(executor.submit(row, workflow), timeout=120)]
    return rollouts and rollouts["rewards"].tolist()


texts = sys.argv[2:6]
facts = {
    "epochs": [rewards(texts) for _ in range(2)],
    "unscored": rewards([*texts[:3], "silent"]),
}
executor.destroy()
sys.stdout.write("\n" + json.dumps(facts))
