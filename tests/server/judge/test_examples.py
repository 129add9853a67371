"""Test each block of examples/markscheme.toml with one call to a fake of its provider's dialect."""

import asyncio
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.judge import ScriptedJudge, verdicts
from markscheme_server.app import make_judge
from markscheme_server.config import Settings
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import VerifyTask

FILE = Path(__file__).parents[3] / "examples" / "markscheme.toml"
PROVIDERS = (
    "openai",
    "azure",
    "anthropic",
    "gemini",
    "mistral",
    "deepseek",
    "groq",
    "openrouter",
    "litellm",
    "vllm",
    "sglang",
    "llama_cpp",
    "ollama",
)
TASK = VerifyTask(
    ({"role": "user", "content": "Which colour is the sky?"},),
    (Criterion("c1", "It names a colour.", 1),),
    ("Blue.",),
)
Body = dict[str, Any]


def refused(
    message: str, param: str | None = None, code: str | None = None, status: int = 400
) -> tuple[int, Body]:
    return status, {
        "error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    }


def reasoning(request: Body) -> tuple[int, Body] | str:
    """OpenAI's and Azure's reasoning models."""
    if "temperature" in request:
        return refused(
            "Unsupported value: 'temperature' does not support 0 with this model.",
            "temperature",
            "unsupported_value",
        )
    if "max_tokens" in request:
        return refused(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        )
    return verdicts(request)


def claude(request: Body) -> tuple[int, Body] | str:
    """Refuses a temperature, and takes a response_format without keeping to it."""
    if "temperature" in request:
        return refused("`temperature` is deprecated for this model")
    return f"Here it is: {verdicts(request)}" if "response_format" in request else verdicts(request)


def deepseek(request: Body) -> tuple[int, Body] | str:
    if request.get("response_format", {}).get("type") == "json_schema":
        return refused("This response_format type is unavailable now")
    if request.get("max_tokens", 0) > 8192:
        return refused("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]")
    return f"<think>It names one.</think>{verdicts(request)}"


def mistral(request: Body) -> tuple[int, Body] | str:
    if "seed" in request:
        return 422, {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "seed"],
                    "msg": "Extra inputs are not permitted",
                }
            ]
        }
    return verdicts(request)


def open_weights(request: Body) -> tuple[int, Body] | str:
    """Answer like vLLM and SGLang: the template thinks unless the request turns that off."""
    thinks = request.get("chat_template_kwargs", {}).get("enable_thinking", True)
    return f"<think>\n{'x' * 50}\n</think>\n{verdicts(request)}" if thinks else verdicts(request)


def strict_router(request: Body) -> tuple[int, Body] | str:
    assert request["provider"] == {"require_parameters": True}
    return verdicts(request)


def fenced(request: Body) -> tuple[int, Body] | str:
    return f"```json\n{verdicts(request)}\n```"


DIALECTS: dict[str, Callable[[Body], tuple[int, Body] | str]] = {
    "openai": reasoning,
    "azure": reasoning,
    "anthropic": claude,
    "gemini": fenced,
    "mistral": mistral,
    "deepseek": deepseek,
    "groq": verdicts,
    "openrouter": strict_router,
    "litellm": verdicts,
    "vllm": open_weights,
    "sglang": open_weights,
    "llama_cpp": verdicts,
    "ollama": fenced,
}
LEARNS = {"openai", "azure"}
"""Their name for the reply's length is learnt from the first refusal."""


def test_there_is_a_block_for_each_provider() -> None:
    assert set(PROVIDERS) == set(DIALECTS) <= set(tomllib.loads(FILE.read_text("utf-8"))["judges"])


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_block_fits_its_providers_dialect(
    provider: str, judge: ScriptedJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = tomllib.loads(FILE.read_text("utf-8"))["judges"][provider]
    monkeypatch.setenv("KEY_OF_THE_FAKE", "k")
    own = {"base_url": judge.url, "api_key_env": "KEY_OF_THE_FAKE"}
    lines = [f"{name} = {_toml(value)}" for name, value in (block | own).items()]
    file = tmp_path / "markscheme.toml"
    file.write_text("\n".join(["[judges.one]", *lines]))
    judge.script = lambda request, number: DIALECTS[provider](request)
    made = make_judge(Settings(_env_file=None, config=file), "one", owner="t", secret=b"s" * 16)
    try:
        answer = await made.verify(
            TASK, CallContext(Deadline(asyncio.get_running_loop().time() + 10))
        )
    finally:
        await made.aclose()
    assert answer[0]["c1"].met
    assert len(judge.requests) == (2 if provider in LEARNS else 1)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{name}" = {_toml(v)}' for name, v in value.items()) + " }"
    return json.dumps(value)
