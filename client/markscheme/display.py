"""What notebooks show of rubrics and scores: HTML that suits light and dark themes.

Rubrics, ids and messages may hold anything a model or another team wrote: every text is escaped,
and kept from being read as TeX. Colours are the page's own, or grey and see-through.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markscheme.schema.rubrics import Criterion, Rubric, RubricList
    from markscheme.schema.scores import GroupScore, RolloutScore, ScoreBatch

MAX_ROWS = 60
"""Rows of a table; those beyond are only counted."""
_MAX_MISSED = 3
_LINE = "1px solid rgba(128, 128, 128, 0.35)"
_CELL = f"text-align: left; vertical-align: top; padding: 3px 10px 3px 0; border-bottom: {_LINE};"
_GREEN, _RED, _TRACK = "#3fa45b", "#d9605a", "rgba(128, 128, 128, 0.25)"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def shorten(text: str, length: int = 60) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else line[:length] + "…"


def rubric_html(rubric: "Rubric") -> str:
    """Return a rubric with its prompt and its criteria."""
    facts = [
        f"version {rubric.version}",
        rubric.origin,
        f"team {rubric.team}",
        f"{rubric.maximum_score} points",
        *rubric.tags,
        *(["retired"] if rubric.retired_at else []),
    ]
    prompt = "".join(
        f"<div>{_muted(_text(message.role, 40))} {_text(message.text, 600, lines=True)}</div>"
        for message in rubric.prompt[-3:]
    )
    more = len(rubric.prompt) - 3
    return _page(
        _head("Rubric", rubric.id, facts),
        f'<div style="margin: 4px 0 6px;">{_muted(f"… {more} more") if more > 0 else ""}'
        f"{prompt}</div>",
        _table(["", "points", "criterion", "category"], map(_criterion_row, rubric.criteria)),
    )


def rubrics_html(page: "RubricList") -> str:
    """Return a page of rubrics, one a row."""
    return _page(
        _head("Rubrics", None, [f"{len(page.data)}{' and more' if page.has_more else ''}"]),
        _table(
            ["id", "version", "origin", "team", "criteria", "quality", "prompt"],
            (
                [
                    _text(rubric.id, 80),
                    str(rubric.version),
                    rubric.origin,
                    _text(rubric.team, 80),
                    str(len(rubric.criteria)),
                    _number(page.quality.get(rubric.id)),
                    _text(rubric.prompt[-1].text if rubric.prompt else "", 120),
                ]
                for rubric in page.data
            ),
        ),
    )


def batch_html(batch: "ScoreBatch") -> str:
    """Return the rewards of a batch, group by group."""
    counts = batch.counts
    facts = [
        f"{len(batch.groups)} groups",
        f"{counts.rollouts} rollouts",
        f"{counts.scored} scored",
    ]
    facts += [f"{count} {reason}" for reason, count in batch.reasons.most_common()]
    return _page(_head("Scores", None, facts), _score_table(batch.groups))


def group_html(group: "GroupScore") -> str:
    """Return the rewards of one group."""
    return _page(_head("Scores", group.id, [group.status]), _score_table([group]))


def _score_table(groups: Sequence["GroupScore"]) -> str:
    rows = [
        [_group_cell(group) if number == 0 else "", *_rollout_cells(rollout)]
        for group in groups
        for number, rollout in enumerate(group.rollouts)
    ]
    return _table(["group", "rollout", "reward", "missed"], rows)


def _group_cell(group: "GroupScore") -> str:
    if group.rubric is not None:
        note = f"{group.rubric.origin} {group.rubric.id}"
    else:
        note = group.error.message if group.error is not None else ""
    return (
        f'<div style="max-width: 20em;">{_text(group.id, 80)}<br>{_muted(_text(note, 160))}</div>'
    )


def _rollout_cells(rollout: "RolloutScore") -> list[str]:
    missed = "".join(f"<div>{_text(text, 160)}</div>" for text in rollout.feedback[:_MAX_MISSED])
    more = len(rollout.feedback) - _MAX_MISSED
    if more > 0:
        missed += f"<div>{_muted(f'and {more} more')}</div>"
    if rollout.reward is None:
        reason = rollout.reason.value if rollout.reason is not None else ""
        return [_text(rollout.id, 80), f"None {_muted(_text(reason, 40))}", missed]
    return [_text(rollout.id, 80), _bar(rollout.reward), missed]


def _criterion_row(criterion: "Criterion") -> list[str]:
    colour = _RED if criterion.points < 0 else _GREEN
    check = ""
    if criterion.check is not None:
        check = f" {_muted(_text(_check_words(criterion.check.model_dump()), 160))}"
    return [
        _muted(_text(criterion.id or "", 10)),
        f'<span style="color: {colour}; font-weight: bold;">{criterion.points:+d}</span>',
        _text(criterion.text, 500) + check,
        _muted(criterion.category.replace("_", " ")),
    ]


def _check_words(check: Mapping[str, Any]) -> str:
    """Return a check on one line: its kind, its parameters, and the checks that it is made of."""
    words = [check["kind"]]
    for name, value in check.items():
        if name == "checks":
            words.append(f"({'; '.join(map(_check_words, value))})")
        elif name != "kind" and value is not None:
            words.append(", ".join(value) if isinstance(value, list) else str(value))
    return " ".join(words)


def _bar(reward: float) -> str:
    """Return a reward as a bar and a number; a negative one in red."""
    width = round(100 * min(1.0, abs(reward)))
    colour = _RED if reward < 0 else _GREEN
    return (
        '<span style="white-space: nowrap;"><span style="display: inline-block; '
        "width: 64px; height: 9px; margin-right: 7px; "
        f"border-radius: 2px; background: linear-gradient(to right, {colour} {width}%, "
        f'{_TRACK} {width}%);"></span>{_number(reward)}</span>'
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _page(*parts: str) -> str:
    # The classes keep MathJax out: a rubric about "$5 to $9" is no formula.
    return (
        '<div class="markscheme tex2jax_ignore mathjax_ignore" '
        'style="color: inherit; line-height: 1.4; overflow-x: auto;">' + "".join(parts) + "</div>"
    )


def _head(kind: str, name: str | None, facts: Iterable[str]) -> str:
    title = f"<b>{kind}</b>" + (f" {_text(name, 80)}" if name is not None else "")
    return f"<div>{title} {_muted(' · '.join(_text(fact, 80) for fact in facts))}</div>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are HTML already."""
    all_rows = list(rows)
    head = "".join(
        f'<th style="{_CELL} font-weight: normal; opacity: 0.7;">{name}</th>' for name in columns
    )
    body = "".join(
        '<tr style="background: transparent;">'
        + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row)
        + "</tr>"
        for row in all_rows[:MAX_ROWS]
    )
    more = len(all_rows) - MAX_ROWS
    return (
        '<table style="border-collapse: collapse; margin: 4px 0; border: none; color: inherit;">'
        f'<thead><tr style="background: transparent;">{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
        + (f"<div>{_muted(f'and {more} more rows')}</div>" if more > 0 else "")
    )


def _muted(html: str) -> str:
    return f'<span style="opacity: 0.7;">{html}</span>' if html else ""


def _text(text: str, length: int, *, lines: bool = False) -> str:
    """Return the beginning of a text, escaped, and unable to turn the text around it."""
    shown = text[:length] + "…" * (len(text) > length) if lines else shorten(text, length)
    style = ' style="white-space: pre-wrap;"' if lines else ""
    return f"<bdi{style}>{escape(_CONTROL.sub(chr(0xFFFD), shown))}</bdi>"
