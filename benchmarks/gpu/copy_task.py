"""A task whose self-teacher knows more than its student, learnt from scratch in seconds.

Each of 32 keys has a hidden answer of six values. The small Llama is pre-trained so that on its own
it gets each value right with probability 0.7, and so that it copies a demonstration in its context,
right or wrong. A successful sibling's demonstration then shows it the whole answer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from markscheme.schema import Criterion

KEYS, VALUES, LENGTH = 32, 24, 6
RIGHT, COPIED = 0.7, 0.97
"""Probability that a value is right without a demonstration, and that one is copied from it."""
WORDS = (
    "<pad>",
    "<eos>",
    "<unk>",
    "go",
    "demo",
    "now",
    *(f"k{i}" for i in range(KEYS)),
    *(f"v{i}" for i in range(VALUES)),
)
ID = {word: place for place, word in enumerate(WORDS)}
DEMONSTRATION, CLOSING = "demo {}", "now"
"""The self-teacher's words around a demonstration, in this vocabulary."""
IGNORED = -100
"""Label of a token without a loss."""


@dataclass(frozen=True)
class CopyTask:
    """The hidden answers [KEYS, LENGTH], drawn from `seed`."""

    answers: Tensor

    @classmethod
    def drawn(cls, seed: int = 7) -> "CopyTask":
        """Draw a task."""
        return cls(
            torch.randint(VALUES, (KEYS, LENGTH), generator=torch.Generator().manual_seed(seed))
        )

    def prompts(self) -> list[str]:
        """Return the prompts."""
        return [f"k{key} go" for key in range(KEYS)]

    def criteria(self) -> list[list[Criterion]]:
        """Return a rubric for each prompt: one criterion, decided by code."""
        wanted = [" ".join(f"v{value}" for value in answer) for answer in self.answers.tolist()]
        return [
            [
                Criterion.model_validate(
                    {
                        "text": f"The answer is {answer}.",
                        "points": 1,
                        "check": {"kind": "regex", "pattern": rf"^\s*{answer}\s*$"},
                    }
                )
            ]
            for answer in wanted
        ]

    def batch(
        self, rows: int, generator: torch.Generator, device: str
    ) -> list[tuple[Tensor, Tensor]]:
        """Return token ids and labels, without a demonstration and with one."""
        keys = torch.randint(KEYS, (rows,), generator=generator)
        start = torch.stack([keys + ID["k0"], torch.full_like(keys, ID["go"])], 1)
        end = torch.full((rows, 1), ID["<eos>"])
        shown = self._noisy(self.answers[keys], RIGHT, generator)
        read = torch.cat(
            [torch.full((rows, 1), ID["demo"]), shown + ID["v0"], torch.full((rows, 1), ID["now"])],
            1,
        )
        pairs = []
        for before, said in (
            (start, self._noisy(self.answers[keys], RIGHT, generator)),
            (torch.cat([start, read], 1), self._noisy(shown, COPIED, generator)),
        ):
            ids = torch.cat([before, said + ID["v0"], end], 1)
            labels = ids.clone()
            labels[:, : before.shape[1]] = IGNORED
            pairs.append((ids.to(device), labels.to(device)))
        return pairs

    @staticmethod
    def _noisy(values: Tensor, kept: float, generator: torch.Generator) -> Tensor:
        other = torch.randint(VALUES, values.shape, generator=generator)
        return torch.where(torch.rand(values.shape, generator=generator) < kept, values, other)


def pretrain(task: CopyTask, steps: int, device: str) -> LlamaForCausalLM:
    """Return a model of 168,000 weights after `steps` steps of 128 rows."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            pad_token_id=ID["<pad>"],
            eos_token_id=ID["<eos>"],
            bos_token_id=None,
        )
    ).to(device)
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = sum(
            model(input_ids=ids, labels=labels).loss
            for ids, labels in task.batch(64, generator, device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.cpu()


def save(model: Any, directory: Path) -> None:
    """Save the model with its tokenizer, as a training reads it."""
    plain = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(directory)
