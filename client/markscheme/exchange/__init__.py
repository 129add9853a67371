"""Rubrics in other formats: written and read without loss where the format allows, and loudly where it does not.

    native       all that a rubric says: prompt, criteria with checks and sources, tags
    ropd         ROPD's reference JSON: 4 to 12 criteria of 1 to 5 points, free categories, no prompt
    healthbench  a row of HealthBench: a conversation, criteria with points of either sign and free tags
    rar          a row of Rubrics as Rewards: one question, criteria with a title and a weight of either sign
    verifiers    a rubric file of verifiers: named criteria with weights, no prompt

What may be left out when the caller allows it (a check, a tag, a name) is a loss and told as a sentence. What would
change a reward (a pitfall, a fraction of a point, a message of the prompt) is refused whatever is allowed. No I/O.
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
