"""Models with random weights and recorded rollouts for them: nothing has to be carried.

A step's time and memory depend on shapes alone. The tokenizer has a word for each token, so that a
rollout that is decoded, shown to the self-teacher and encoded again keeps its length.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from training.worker import ROWS

SPECIAL = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True)
class Shape:
    """A Qwen3 architecture; `spread` is the deviation of its random weights.

    `tied`: the head is the embedding.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    groups: int
    head: int
    inner: int
    spread: float = 0.02
    tied: bool = True

    def __str__(self) -> str:
        return (
            f"Qwen3 of {self.layers} layers x {self.hidden} with {self.vocabulary:,} tokens and "
            "random weights"
        )

    def config(self) -> Qwen3Config:
        """Return transformers' configuration."""
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            head_dim=self.head,
            intermediate_size=self.inner,
            max_position_embeddings=40_960,
            tie_word_embeddings=self.tied,
            initializer_range=self.spread,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )


QWEN3_06B = Shape(151_936, 1024, 28, 16, 8, 128, 3072)
QWEN3_8B = Shape(151_936, 4096, 36, 32, 8, 128, 12_288, tied=False)
MIDDLE = Shape(32_000, 512, 6, 8, 4, 64, 1536, spread=0.05)
"""Small enough for a CPU to compute reference gradients."""
TINY = Shape(1_000, 64, 2, 4, 2, 16, 128, spread=0.05)


def save_model(shape: Shape, directory: Path, *, device: str = "cpu") -> Any:
    """Write a model with random weights and its tokenizer; return the tokenizer."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM(shape.config())
    model.save_pretrained(directory)
    words = [*SPECIAL, *(f"w{number}" for number in range(shape.vocabulary - len(SPECIAL)))]
    plain = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    )
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def question(length: int = 32) -> str:
    """Return a prompt of so many tokens."""
    return " ".join(f"w{number}" for number in range(length))


def recorded(shape: Shape, length: int) -> list[list[int]]:
    """Return the same `ROWS` rollouts of `length` tokens each time; none ends by itself."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(len(SPECIAL), shape.vocabulary, (ROWS, length), generator=generator)
    rows: list[list[int]] = ids.tolist()
    return rows
