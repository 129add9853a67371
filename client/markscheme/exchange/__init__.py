"""Read and write rubrics in other formats, without loss where the format allows it.

    native                    everything: prompt, criteria with checks and sources, tags, metadata
    ropd                      ROPD's JSON: 4 to 12 criteria of 1 to 5 points, no prompt
    healthbench               a row of HealthBench, and of its consensus and hard subsets
    healthbench-meta-eval     rows of one prompt of HealthBench's meta-evaluation
    healthbench-professional  a row of HealthBench Professional
    rar                       a row of Rubrics as Rewards (RaR-Medicine, RaR-Science)
    rubrichub                 a row of RubricHub, for RL or for fine-tuning
    researchrubrics           a row of ResearchRubrics
    wildchecklists            a row of WildChecklists: numbered lines with their importance
    openrubrics               a row of OpenRubrics: numbered lines, hard rules and principles
    ifeval                    a row of IFEval or IFBench: instructions become checks
    promptfoo                 a test of promptfoo, its `llm-rubric` assertions
    verifiers                 a rubric file of verifiers: named criteria with weights, no prompt
    mapped                    a row of any shape, by a mapping of its paths

A row's fields that we have no place for are kept in the rubric's metadata, and `dump` writes them
again: a row that is loaded and dumped is the same row. A part that another format cannot hold (a
check, a tag, a name) is a loss, described in a sentence and dropped only if the caller allows it.
What would change a reward (a pitfall, a message of the prompt) is always refused. No I/O.
"""

from markscheme.exchange.base import (
    LOSSES_HEADER,
    Exported,
    Imported,
    Malformed,
    NotRepresentable,
    ReferenceAnswer,
    decode_losses,
    encode_losses,
)
from markscheme.exchange.detection import detect_format
from markscheme.exchange.reading import load, row_id
from markscheme.exchange.writing import dump

__all__ = [
    "LOSSES_HEADER",
    "Exported",
    "Imported",
    "Malformed",
    "NotRepresentable",
    "ReferenceAnswer",
    "detect_format",
    "dump",
    "load",
    "row_id",
    "encode_losses",
    "decode_losses",
]
