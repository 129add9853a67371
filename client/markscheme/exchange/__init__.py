"""Read and write rubrics in other formats, without loss where the format allows it.

    native       everything: prompt, criteria with checks and sources, tags
    ropd         ROPD's JSON: 4 to 12 criteria of 1 to 5 points, free categories, no prompt
    healthbench  a row of HealthBench: a conversation, criteria with signed points and free tags
    rar          a row of Rubrics as Rewards: one question, criteria with a title and signed weight
    verifiers    a rubric file of verifiers: named criteria with weights, no prompt

A part that the other side cannot hold (a check, a tag, a name) is a loss, described in a sentence
and dropped only if the caller allows it. What would change a reward (a pitfall, a fraction of a
point, a message of the prompt) is always refused. No I/O.
"""

from markscheme.exchange.base import (
    LOSSES_HEADER,
    Exported,
    Imported,
    Malformed,
    NotRepresentable,
    decode_losses,
    encode_losses,
)
from markscheme.exchange.reading import load
from markscheme.exchange.writing import dump

__all__ = [
    "LOSSES_HEADER",
    "Exported",
    "Imported",
    "Malformed",
    "NotRepresentable",
    "dump",
    "load",
    "encode_losses",
    "decode_losses",
]
