"""Compare runs of the caller's team: rewards by step, criteria, and the prompts that they share."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence

from markscheme import schema
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import prompt_text
from markscheme_server.domain.run_comparison import (
    LastGroup,
    SharedPrompt,
    order_of_loss,
    reward_difference,
    shared_prompts,
)
from markscheme_server.domain.run_history import RunHistory
from markscheme_server.errors import BadRequest
from markscheme_server.scoring.paging import page_after
from markscheme_server.scoring.run_groups import PROMPT_LENGTH
from markscheme_server.scoring.run_histories import LoadedRun, RunHistories
from markscheme_server.scoring.runs import find_run, share_now, summarise
from markscheme_server.store.run_groups import RunGroupStore
from markscheme_server.store.runs import RunCost, RunStore

MIN_RUNS, MAX_RUNS = 2, 6


class RunComparisonService:
    """The operation behind `/v1/runs:compare`."""

    def __init__(self, runs: RunStore, groups: RunGroupStore, histories: RunHistories) -> None:
        self._runs, self._groups, self._histories = runs, groups, histories

    async def compare(
        self,
        caller: Caller,
        run_ids: Sequence[str],
        *,
        bins: int = 200,
        criteria: int = 40,
        limit: int = 50,
        after: str | None = None,
    ) -> schema.RunComparison:
        """Compare two to six runs with the first. Raises `BadRequest` and `NotFound`.

        `criteria`: so many at most. `limit`: prompts of a page; `after`: the key of the last prompt
        of the page before.
        """
        if not MIN_RUNS <= len(run_ids) <= MAX_RUNS:
            raise BadRequest(
                f"{MIN_RUNS} to {MAX_RUNS} different runs can be compared; these are "
                f"{len(run_ids)}",
                code="wrong_number_of_runs",
                param="runs",
            )
        found = [await find_run(self._runs, caller, run_id, param="runs") for run_id in run_ids]
        loaded, costs, groups = await asyncio.gather(
            asyncio.gather(*map(self._histories.load, found)),
            self._histories.costs(found),
            self._groups.last_of_prompts(caller.team, run_ids),
        )
        # In a thread, because long runs take tens of milliseconds of the event loop.
        answer, page = await asyncio.to_thread(
            _compare, loaded, costs, groups, bins=bins, criteria=criteria, limit=limit, after=after
        )
        texts = await self._prompts(caller.team, page)
        return answer.model_copy(update={"prompts": [_prompt(each, texts) for each in page]})

    async def _prompts(self, team: str, page: Sequence[SharedPrompt]) -> dict[str, str]:
        """Return the prompts of a page, by their keys."""
        ids = [group.id for each in page if (group := each.groups[0]) is not None]
        return {
            key: prompt_text(messages)[:PROMPT_LENGTH]
            for key, messages in (await self._groups.prompts(team, ids)).items()
        }


def _compare(
    loaded: Sequence[LoadedRun],
    costs: Mapping[str, RunCost],
    groups: Sequence[LastGroup],
    *,
    bins: int,
    criteria: int,
    limit: int,
    after: str | None,
) -> tuple[schema.RunComparison, list[SharedPrompt]]:
    """Return the comparison without its prompts, and the prompts of the page."""
    names = [each.run.id for each in loaded]
    prompts = shared_prompts(names, groups)
    page, more = page_after(prompts, lambda prompt: prompt.key, after=after, limit=limit)
    asked = Counter(key for each in loaded for key, c in each.counts.items() if c.rollouts.steps)
    shared = [_criterion(loaded, key) for key, runs in asked.items() if runs >= MIN_RUNS]
    shared.sort(key=lambda each: (_loss(each.now), each.key))
    categories = dict.fromkeys(category for each in loaded for category in each.categories)
    answer = schema.RunComparison(
        runs=[summarise(each, costs[each.run.id]) for each in loaded],
        spans=_spans([each.history for each in loaded], bins),
        differences=[_difference(name, prompts, n) for n, name in enumerate(names) if n],
        categories=[_category(loaded, category) for category in categories],
        criteria=shared[:criteria],
        criteria_total=len(shared),
        own_criteria=len(asked) - len(shared),
        prompts=[],
        prompts_total=len(prompts),
        pruned_groups=[each.history.pruned for each in loaded],
        has_more=more,
    )
    return answer, page


def _spans(histories: Sequence[RunHistory], bins: int) -> list[schema.ComparedSpan]:
    """Return the rewards of all runs in the same spans of steps, which count from 1."""
    offsets = [
        schema.display_step(history.first_step, history.first_step) - history.first_step
        if history.first_step is not None
        else 0
        for history in histories
    ]
    ends = [
        (history.first_step + offset, history.last_step + offset)
        for history, offset in zip(histories, offsets, strict=True)
        if history.first_step is not None and history.last_step is not None
    ]
    if not ends:
        return []
    start, stop = min(first for first, _ in ends), max(last for _, last in ends)
    width = -(-(stop - start + 1) // bins)
    count = -(-(stop - start + 1) // width)
    columns = []
    for history, offset in zip(histories, offsets, strict=True):
        sums, known, rollouts = [0.0] * count, [0] * count, [0] * count
        of = history.columns
        figures = zip(
            of.steps, of.sums["reward"], of.counts["known"], of.counts["rollouts"], strict=True
        )
        for step, total, known_now, rollouts_now in figures:
            span = (step + offset - start) // width
            sums[span] += total
            known[span] += known_now
            rollouts[span] += rollouts_now
        columns.append(
            [
                schema.ComparedReward(
                    reward=total / n if n else None, rollouts=every, unscored=every - n
                )
                for total, n, every in zip(sums, known, rollouts, strict=True)
            ]
        )
    return [
        schema.ComparedSpan(
            first_step=start + n * width,
            last_step=min(stop, start + (n + 1) * width - 1),
            runs=list(row),
        )
        for n, row in enumerate(zip(*columns, strict=True))
        if any(each.rollouts for each in row)
    ]


def _criterion(loaded: Sequence[LoadedRun], key: str) -> schema.ComparedCriterion:
    counts = [each.counts.get(key) for each in loaded]
    shown = next(each for each in counts if each is not None)
    return schema.ComparedCriterion(
        key=key,
        criterion_id=shown.criterion.id,
        text=shown.criterion.text,
        category=shown.criterion.category,
        points=shown.criterion.points,
        rubric_id=shown.rubrics[0],
        now=[
            share_now(each.rollouts) if each is not None and each.rollouts.steps else None
            for each in counts
        ],
    )


def _category(loaded: Sequence[LoadedRun], category: str | None) -> schema.ComparedCategory:
    counts = [each.categories.get(category) for each in loaded]
    return schema.ComparedCategory(
        category=category,
        criteria=[each.criteria if each is not None else 0 for each in counts],
        now=[
            share_now(each.rollouts) if each is not None and each.rollouts.steps else None
            for each in counts
        ],
    )


def _loss(now: Sequence[schema.CriterionShare | None]) -> tuple[bool, float]:
    first, *others = (each.met / each.judged if each and each.judged else None for each in now)
    return order_of_loss(
        other - first if first is not None and other is not None else None for other in others
    )


def _difference(name: str, prompts: Sequence[SharedPrompt], run: int) -> schema.RunDifference:
    found = reward_difference(prompts, run)
    return schema.RunDifference(
        run=name,
        prompts=found.prompts,
        unknown=found.unknown,
        first=found.first,
        reward=found.other,
        difference=schema.MeanInterval(**found.difference._asdict()),
        same_rubric=found.same_rubric,
        same_rubric_difference=schema.MeanInterval(**found.same_rubric_difference._asdict()),
    )


def _prompt(prompt: SharedPrompt, texts: Mapping[str, str]) -> schema.ComparedPrompt:
    return schema.ComparedPrompt(
        prompt_key=prompt.key,
        prompt=texts.get(prompt.key, ""),
        groups=[
            schema.PromptGroup(
                id=group.id,
                step=group.step,
                rubric_id=group.rubric_id,
                judge=group.judge,
                mean=group.mean,
            )
            if group is not None
            else None
            for group in prompt.groups
        ],
    )
