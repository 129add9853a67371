"""A real `eval` of inspect_ai with mockllm."""

import json
import math
import sys
import tempfile
from types import SimpleNamespace

import tiktoken
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.solver import generate

from markscheme import Client
from markscheme.integrations.inspect_ai import rubric

# mockllm counts tokens by a table that it would download.
tiktoken.get_encoding = lambda _name: SimpleNamespace(encode=lambda text, **_: text.split())

texts = [*sys.argv[2:4], "silent"]
Client().create_rubric(sys.argv[1], [{"text": "It has no comma.", "points": 1}])
outputs = [ModelOutput.from_content("mockllm/model", text) for text in texts]
samples = [Sample(input=sys.argv[1], id=place) for place, _ in enumerate(texts)]
with tempfile.TemporaryDirectory() as logs:
    [log] = eval(
        Task(dataset=samples, solver=generate(), scorer=rubric()),
        model=get_model("mockllm/model", custom_outputs=outputs),
        max_samples=1,
        display="none",
        log_dir=logs,
    )
    found = [each.scores["rubric"] for each in log.samples]  # read from the log's file
[result] = log.results.scores
facts = {
    "status": log.status,
    "scores": [None if math.isnan(each.value) else each.value for each in found],
    "explanations": [each.explanation for each in found],
    "mean": result.metrics["mean"].value,
    "counts": [result.scored_samples, result.unscored_samples],
}
sys.stdout.write("\n" + json.dumps(facts))
