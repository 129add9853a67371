"""Sample SmolLM2-135M's responses to IFEval prompts, for the builtin judge's benchmark.

    python benchmarks/students.py --prompts TRAIN.jsonl --out benchmarks/data/ifeval_students.jsonl

Two parts, both at temperature 1.0: 80 short prompts (under 60 words) with 4 responses of at most 80
tokens, and the next 28 with 8 responses of at most 40 tokens. Prompts are ordered by the sha256 of
`students:<id>`, so nobody picks them. Torch is seeded with 7 for the first part and 8 for the
second.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from markscheme_train.demo.model import ensure_model
from markscheme_train.demo.sample import sample_responses

PARTS = (
    {"prompts": 80, "per_prompt": 4, "max_new_tokens": 80, "seed": 7},
    {"prompts": 28, "per_prompt": 8, "max_new_tokens": 40, "seed": 8},
)
MAX_PROMPT_WORDS = 60


def choose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the short prompts in hash order."""
    short = [row for row in rows if len(row["prompt"].split()) < MAX_PROMPT_WORDS]
    return sorted(
        short, key=lambda row: hashlib.sha256(f"students:{row['id']}".encode()).hexdigest()
    )


def main() -> None:
    """Sample and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("build/smollm2"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data/ifeval_students.jsonl"))
    arguments = parser.parse_args()
    rows = choose([json.loads(line) for line in arguments.prompts.read_text().splitlines()])
    directory = ensure_model(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with arguments.out.open("w") as out:
        for part in PARTS:
            chosen, rows = rows[: part["prompts"]], rows[part["prompts"] :]
            answers = sample_responses(
                model,
                tokenizer,
                [row["prompt"] for row in chosen],
                per_prompt=part["per_prompt"],
                max_new_tokens=part["max_new_tokens"],
                seed=part["seed"],
                progress=lambda n: print(f"+{n}", end=" ", flush=True),
            )
            for row, samples in zip(chosen, answers, strict=True):
                rollouts = [{"text": s.text, "truncated": s.truncated} for s in samples]
                out.write(
                    json.dumps({"id": row["id"], "rollouts": rollouts}, ensure_ascii=False) + "\n"
                )
            out.flush()
    print(f"\n{arguments.out}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
