"""HealthBench's meta-evaluation: physicians' labels of completions, put together by prompt.

A row holds one completion, one criterion and what several physicians said of the two. The rows of a
prompt are one rubric of its criteria, a point each. The labels are metadata of their criterion, the
completions of the rubric.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markscheme.exchange.base import ConversionIssues, Malformed, NotRepresentable
from markscheme.exchange.paths import MISSING, decode, same
from markscheme.exchange.rows import HOW, Draft
from markscheme.exchange.values import require, to_messages, to_text, write_messages
from markscheme.schema.base import MAX_CRITERIA, Message
from markscheme.schema.rubrics import Criterion

NAME = "healthbench-meta-eval"
_SHARED = ("prompt_id", "canary")


def read_meta_eval(content: Any, _: ConversionIssues) -> Draft:
    """Read one row, or a list of the rows of one prompt. Raises `Malformed`."""
    rows = content if isinstance(content, list) else [content]
    if not rows:
        raise Malformed("the content holds no row")
    prompt: tuple[Message, ...] | None = None
    criteria: dict[str, list[dict[str, Any]]] = {}
    completions: dict[str, str] = {}
    raw_prompt: Any = None
    for number, row in enumerate(rows):
        at = f"[{number}]." if isinstance(content, list) else ""
        if not isinstance(row, dict):
            raise require(row, at.rstrip(".") or "the content", "an object")
        messages = to_messages(row.get("prompt", MISSING), f"{at}prompt")
        if prompt is None:
            prompt, raw_prompt = messages, row["prompt"]
        elif messages != prompt:
            raise Malformed(f"{at}prompt: is not that of the other rows; import each by itself")
        text = to_text(row.get("rubric", MISSING), f"{at}rubric")
        raw_labels = row.get("binary_labels", MISSING)
        labels = decode(raw_labels)
        if not isinstance(labels, list) or not all(isinstance(each, bool) for each in labels):
            raise require(raw_labels, f"{at}binary_labels", "a list of true and false")
        label = {name: value for name, value in row.items() if name not in ("rubric", "prompt")}
        if not same(row["prompt"], raw_prompt):
            label["prompt"] = row["prompt"]
        completion_id, completion = row.get("completion_id"), row.get("completion")
        if (
            isinstance(completion_id, str)
            and isinstance(completion, str)
            and completions.setdefault(completion_id, completion) == completion
        ):
            # Kept once for the rubric: each row of the completion repeats it.
            del label["completion"]
        criteria.setdefault(text, []).append(label | {HOW: number})
    if len(criteria) > MAX_CRITERIA:
        raise NotRepresentable(
            [f"there are {len(criteria)} criteria; a rubric has {MAX_CRITERIA} at most"]
        )
    every = [label for labels in criteria.values() for label in labels]
    shared = {
        name: every[0][name]
        for name in _SHARED
        if name in every[0] and all(same(label.get(name), every[0][name]) for label in every)
    }
    for label in every:
        for name in shared:
            del label[name]
    how: dict[str, Any] = {} if isinstance(content, list) else {"single": True}
    assert prompt is not None
    if not same(raw_prompt, write_messages(prompt)):
        how["prompt"] = raw_prompt
    return Draft(
        prompt,
        [
            {"text": text, "points": 1, "metadata": {NAME: {"labels": labels}}}
            for text, labels in criteria.items()
        ],
        metadata={NAME: {**shared, "completions": completions, HOW: how}},
    )


def write_meta_eval(
    prompt: Sequence[Message], criteria: Sequence[Criterion], metadata: Mapping[str, Any]
) -> Any:
    """Write the rows of a rubric that was read from such rows. Raises `NotRepresentable`."""
    own = metadata.get(NAME)
    if not isinstance(own, dict) or not isinstance(own.get("completions"), dict):
        raise NotRepresentable(["the rubric has no labels: it is not from HealthBench's meta-eval"])
    kept = own.get(HOW)
    how: dict[str, Any] = kept if isinstance(kept, dict) else {}
    shared = {name: own[name] for name in _SHARED if name in own}
    rows: list[tuple[int, dict[str, Any]]] = []
    for criterion in criteria:
        labels = criterion.metadata.get(NAME)
        found = labels.get("labels") if isinstance(labels, dict) else None
        for label in found if isinstance(found, list) else ():
            if not isinstance(label, dict):
                continue
            row = {
                "prompt": how.get("prompt", write_messages(prompt)),
                **shared,
                "rubric": criterion.text,
                **{name: value for name, value in label.items() if name != HOW},
            }
            completion_id = label.get("completion_id")
            if isinstance(completion_id, str) and completion_id in own["completions"]:
                row.setdefault("completion", own["completions"][completion_id])
            position = label.get(HOW)
            rows.append((position if isinstance(position, int) else len(rows), row))
    if not rows:
        raise NotRepresentable(["none of its criteria has labels"])
    # In the order in which the rows were read.
    written = [row for _, row in sorted(rows, key=lambda each: each[0])]
    return written[0] if how.get("single") is True and len(written) == 1 else written


def together(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the rows of each prompt together, with the number of the first.

    All rows are read before the first are yielded: those of a prompt may stand anywhere. What is
    no object, or has no prompt, is yielded by itself.
    """
    groups: dict[str, tuple[int, list[Any]]] = {}
    for number, row in rows:
        prompt = row.get("prompt") if isinstance(row, dict) else None
        key = repr(prompt) if prompt is not None else f"row {number}"
        groups.setdefault(key, (number, []))[1].append(row)
    yield from groups.values()
