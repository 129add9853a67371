"""A tiny student that calls a tool: a byte-level tokenizer with Qwen3's chat template, a script."""

import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MARKS = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
Script = Callable[[int, str], str]
"""The index of a row and its prompt as text → what the student writes."""


def tool_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<|pad|>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS[:1]})
    tokenizer.chat_template = (
        resources.files("trl").joinpath("chat_templates", "qwen3.jinja").read_text("utf-8")
    )
    return tokenizer


class ScriptedStudent(LlamaForCausalLM):
    """Writes what a script says; its weights are random and can be trained."""

    tokenizer: PreTrainedTokenizerFast
    script: Script

    def generate(self, input_ids: torch.Tensor, **_options: Any) -> torch.Tensor:
        written = [
            self.tokenizer(self.script(row, text) + "<|im_end|>")["input_ids"]
            for row, text in enumerate(self.tokenizer.batch_decode(input_ids))
        ]
        longest = max(map(len, written))
        pad = self.tokenizer.pad_token_id
        return torch.cat(
            [input_ids, torch.tensor([ids + [pad] * (longest - len(ids)) for ids in written])], 1
        )


def scripted_student(tokenizer: PreTrainedTokenizerFast, script: Script) -> ScriptedStudent:
    torch.manual_seed(0)
    student = ScriptedStudent(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=8192,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    student.tokenizer, student.script = tokenizer, script
    return student


def tool_call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
