"""SkyRL's own generator with the recipe; a scripted inference engine."""

# ruff: noqa: E402

import asyncio
import json
import sys
import typing
from typing import Any

import typing_extensions

typing.TypedDict = typing_extensions.TypedDict  # pydantic wants it so before Python 3.12

import skyrl_gym
from recipe import recipe
from skyrl.train.config import GeneratorConfig, SkyRLGymConfig
from skyrl.train.generators.base import TrajectoryID
from skyrl.train.utils.trainer_utils import validate_generator_output
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
from tokenizer import byte_tokenizer

RubricGenerator = recipe("skyrl.md")["RubricGenerator"]
tokenizer = byte_tokenizer()


class Question(BaseTextEnv):
    """One turn without a reward of its own."""

    def __init__(self, **_options: Any) -> None:
        super().__init__()

    def step(self, action: str) -> BaseTextEnvStepOutput:
        return BaseTextEnvStepOutput(observations=[], reward=0.0, done=True, metadata={})


class Engine:
    """What the generator needs of an inference engine: gives each trajectory its text."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = {f"row_{place}": text for place, text in enumerate(texts)}

    async def generate(self, asked: Any, **_options: Any) -> dict[str, Any]:
        [session] = asked["session_ids"]
        text = self.texts[session]
        ids = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
        return {
            "responses": [text],
            "response_ids": [ids],
            "response_logprobs": [[0.0] * len(ids)],
            "stop_reasons": ["stop"],
        }

    async def finish_session(self, *_session: Any, **_options: Any) -> None:
        pass


skyrl_gym.register(id="question", entry_point=Question)


async def generated(texts: list[str]) -> Any:
    config = GeneratorConfig(use_conversation_multi_turn=False, max_input_length=4096)
    config.use_cache_salt = False
    gym = SkyRLGymConfig(max_env_workers=0)
    generator = RubricGenerator(config, gym, Engine(texts), tokenizer)
    asked = {
        "prompts": [[{"role": "user", "content": sys.argv[1]}] for _ in texts],
        "env_classes": ["question"] * len(texts),
        "env_extras": [{} for _ in texts],
        "sampling_params": None,
        "trajectory_ids": [TrajectoryID("row", i) for i, _ in enumerate(texts)],
        "batch_metadata": None,
    }
    try:
        output = await generator.generate(asked, disable_tqdm=True)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    validate_generator_output(len(texts), output)
    return [output["rewards"], [max(mask) for mask in output["loss_masks"]]]


async def main() -> None:
    texts = sys.argv[2:6]
    facts = {
        "group": await generated(texts),
        "unscored": await generated([*texts[:3], "silent"]),
        "nothing known": await generated(["silent", "silent"]),
    }
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
