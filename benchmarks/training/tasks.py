"""Small tasks with a real self-teacher: a model that does better once it has read a good answer.

A prompt has one right answer of six values. A small Llama is pre-trained on noisy answers, so that
on its own it gets each value right with a known probability; and it is pre-trained to copy a
demonstration in its context, right or wrong. What the methods of `training.methods` make of it is
reinforcement learning alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from markscheme_train import reprompt

KEYS, FAMILIES, VALUES, LENGTH = 32, 6, 24, 6
WORDS = (
    "<pad>",
    "<eos>",
    "<unk>",
    "go",
    "demo",
    "miss",
    "-",
    "now",
    *(f"k{key}" for key in range(KEYS)),
    *(f"f{family}" for family in range(FAMILIES)),
    *(f"s{slot}" for slot in range(LENGTH)),
    *(f"v{value}" for value in range(VALUES)),
)
ID = {word: place for place, word in enumerate(WORDS)}
DEMONSTRATION, FEEDBACK, CLOSING = "demo {}", "miss {}", "now"
"""The self-teacher's words around what it reads, in this vocabulary."""
MAX_TOKENS = LENGTH + 2
"""Length limit of a rollout: an answer and its end take one token less."""
IGNORED = -100
"""Label of a token without a loss."""


@dataclass(frozen=True)
class Task:
    """Prompts and their answers, and what the model can do before reinforcement learning.

    Attributes:
        name: Its name in results.
        prompts: Token ids [N, P].
        answers: Token ids [N, LENGTH].
        trained: How many of the first prompts reinforcement learning uses.
        held_out: How many of the last prompts are in no training; they measure generalisation.
        right: Probability that a value is right without help, by pre-training.
        copied: Probability that a value is copied from what the model reads, by pre-training.
        reads: What pre-training teaches it to use: `demonstration`, `feedback`.
        layers: Layers of the model.
        width: Size of its hidden states.
        steps: Steps of pre-training.
        rows: Rows of each kind in such a step.
    """

    name: str
    prompts: Tensor
    answers: Tensor
    trained: int
    held_out: int = 0
    right: float = 0.7
    copied: float = 0.97
    reads: Sequence[str] = ("demonstration",)
    layers: int = 3
    width: int = 64
    steps: int = 300
    rows: int = 64

    @cached_property
    def answer_of(self) -> Mapping[str, list[str]]:
        """The words of the right answer, by the text of each prompt of the training."""
        return {
            words(prompt): words(answer).split()
            for prompt, answer in zip(
                self.prompts[: self.trained].tolist(),
                self.answers[: self.trained].tolist(),
                strict=True,
            )
        }

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield token ids and labels [rows, T]: without help, then with each kind of help."""
        rows = self.rows
        end = torch.full((rows, 1), ID["<eos>"])
        picked = torch.randint(len(self.prompts) - self.held_out, (rows,), generator=generator)
        prompt, answer = self.prompts[picked], self.answers[picked]
        guess = noisy(answer, self.right, generator)
        shown = noisy(answer, self.right, generator)
        now = torch.full((rows, 1), ID["now"])
        demonstration = torch.cat([torch.full((rows, 1), ID["demo"]), shown], 1)
        copied = (
            noisy(shown, self.copied, generator)
            if "demonstration" in self.reads
            else noisy(answer, self.right, generator)
        )
        kinds = [(prompt, guess), (torch.cat([prompt, demonstration, now], 1), copied)]
        if "feedback" in self.reads:
            slots = int(torch.randint(1, LENGTH + 1, (1,), generator=generator))
            missed = torch.rand((rows, LENGTH), generator=generator).argsort(1)[:, :slots]
            missed = missed.sort(1).values
            listed = torch.stack(
                [
                    torch.full_like(missed, ID["-"]),
                    missed + ID["s0"],
                    answer.gather(1, missed),
                ],
                2,
            ).flatten(1)
            feedback = torch.cat([torch.full((rows, 1), ID["miss"]), listed], 1)
            told = noisy(answer, self.copied, generator).gather(1, missed)
            kinds += [
                (torch.cat([prompt, feedback, now], 1), guess.scatter(1, missed, told)),
                (
                    torch.cat([prompt, demonstration, feedback, now], 1),
                    copied.scatter(1, missed, told),
                ),
            ]
        for before, said in kinds:
            ids = torch.cat([before, said, end], 1)
            labels = ids.clone()
            labels[:, : before.shape[1]] = IGNORED
            yield ids, labels


def noisy(values: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """Return token ids of values of which each is kept with a probability, else drawn anew."""
    other = torch.randint(VALUES, values.shape, generator=generator) + ID["v0"]
    return torch.where(torch.rand(values.shape, generator=generator) < kept, values, other)


def words(ids: Sequence[int]) -> str:
    """Return token ids as text."""
    return " ".join(WORDS[number] for number in ids)


def copy_task(name: str = "copy", **settings: Any) -> Task:
    """Return the copy task: each of 32 keys has a hidden answer, which has to be remembered."""
    keys = torch.arange(KEYS)
    return Task(
        name,
        prompts=torch.stack([keys + ID["k0"], torch.full_like(keys, ID["go"])], 1),
        answers=torch.randint(VALUES, (KEYS, LENGTH), generator=torch.Generator().manual_seed(7))
        + ID["v0"],
        trained=KEYS,
        **settings,
    )


def families_task() -> Task:
    """Return the larger task: six families of functions of six values, with held-out inputs.

    A family puts the values in an order and replaces each by a secret table: three orders, two
    tables. 512 inputs are trained on by reinforcement learning, 512 others occur in no training.
    """
    generator = torch.Generator().manual_seed(7)
    count = 40_000
    tables = torch.stack([torch.randperm(VALUES, generator=generator) for _ in range(2)])
    orders = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 0, 3, 2, 5, 4]])
    family = torch.arange(count) % FAMILIES
    given = torch.randint(VALUES, (count, LENGTH), generator=generator)
    answers = tables[family % 2].gather(1, given.gather(1, orders[family // 2]))
    return Task(
        "families",
        prompts=torch.cat(
            [
                family[:, None] + ID["f0"],
                given + ID["v0"],
                torch.full((count, 1), ID["go"]),
            ],
            1,
        ),
        answers=answers + ID["v0"],
        trained=512,
        held_out=512,
        layers=4,
        width=160,
        steps=1200,
        rows=32,
    )


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        copy_task(),
        # The weak teacher: a demonstration in the context changes nothing.
        copy_task("copy-weak", reads=()),
        # Few successes, so that many groups have none.
        copy_task("copy-sparse", right=0.6),
        # A self-teacher that stays better than a student which gets nine of ten right.
        copy_task("copy-exact", copied=0.998, steps=900),
        copy_task("copy-rubric", reads=("demonstration", "feedback"), steps=600),
        # Hardly any answer is wholly right, most are partly.
        copy_task("copy-rubric-sparse", right=0.45, reads=("demonstration", "feedback"), steps=600),
        families_task(),
    )
}


def pretrain(task: Task, steps: int, device: str = "cpu") -> LlamaForCausalLM:
    """Return a model of a task after `steps` steps of pre-training; the same one each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(WORDS),
                hidden_size=task.width,
                intermediate_size=3 * task.width,
                num_hidden_layers=task.layers,
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 * 64 / task.width)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        for ids, labels in task.batches(generator):
            model(input_ids=ids.to(device), labels=labels.to(device)).loss.backward()
        optimizer.step()
        schedule.step()
    return model.cpu()


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of all tasks: a word is a token."""
    plain = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def save(model: Any, directory: Path) -> None:
    """Save the model with its tokenizer, as a training reads it."""
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)


@contextmanager
def reprompt_in_task_words() -> Iterator[None]:
    """Show the self-teacher what it reads in the tasks' words: no model here knows English."""
    english = reprompt.DEMONSTRATION, reprompt.FEEDBACK, reprompt.CLOSING
    try:
        reprompt.DEMONSTRATION, reprompt.FEEDBACK = DEMONSTRATION, FEEDBACK
        reprompt.CLOSING = CLOSING
        yield
    finally:
        reprompt.DEMONSTRATION, reprompt.FEEDBACK, reprompt.CLOSING = english


@torch.no_grad()
def success_rate(
    model: Any, task: Task, rows: slice, *, shown: bool = False, samples: int = 8
) -> float:
    """Return the share of sampled answers that are right.

    Args:
        model: The model.
        task: The task.
        rows: Its prompts to sample for.
        shown: Show the right answer first, as a demonstration.
        samples: Samples of each prompt.
    """
    prompts = task.prompts[rows].repeat_interleave(samples, 0)
    answers = task.answers[rows].repeat_interleave(samples, 0)
    said = prompts
    if shown:
        edge = torch.full_like(prompts[:, :1], ID["demo"])
        said = torch.cat([prompts, edge, answers, torch.full_like(edge, ID["now"])], 1)
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        out = model.generate(
            input_ids=said,
            attention_mask=torch.ones_like(said),
            do_sample=True,
            top_k=0,
            max_new_tokens=MAX_TOKENS,
            pad_token_id=ID["<pad>"],
        )[:, said.shape[1] :]
    out = torch.nn.functional.pad(out, (0, MAX_TOKENS - out.shape[1]), value=ID["<pad>"])
    want = torch.cat([answers, torch.full_like(answers[:, :1], ID["<eos>"])], 1)
    return float((out[:, : LENGTH + 1] == want).all(1).float().mean())
