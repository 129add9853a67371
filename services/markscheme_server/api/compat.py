"""`/compat`: rewards in the protocols of trainers that can set no header and take no null.

The key stands in the path, so it must be able to do little: score, and induce. No log, metric,
trace or error names a path with its values.
"""

import asyncio
import re
import string
from collections.abc import Awaitable, Iterable
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from markscheme import schema
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.disconnect import while_connected
from markscheme_server.api.errors import RESPONSES, judge_error
from markscheme_server.api.scores import GRACE_S, require_induce
from markscheme_server.api.services import PlainInteger, UsesServices, caller_of
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Forbidden, Unprocessable
from markscheme_server.judge.base import JudgeFailure
from markscheme_server.scoring.unnamed_groups import KnownReward

OPENRLHF_MS, SLIME_MS = 175_000, 115_000
"""Milliseconds after which a request is answered: OpenRLHF waits 180 s, slime 120 s."""
_SCOPES = frozenset({"score", "induce"})
_END_TOKENS = ("</s>", "<eos>", "<end_of_turn>", "<pad>")
_END_REVERSED = re.compile(
    rf"\s*(?:>\|[\w.-]+\|<|{'|'.join(token[::-1] for token in _END_TOKENS)})", re.ASCII
)
"""A token that ends a text, read backwards, with the white space after it: searched from its begin,
each place would be tried, which takes quadratic time."""
_TURNS = (
    (re.compile(r"<\|im_start\|>(\w+)(?: name=\S+)?\n"), re.compile(r"<\|im_end\|>")),
    (
        re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"),
        re.compile(r"<\|eo[tm]_id\|>"),
    ),
)
"""What begins and what ends a turn of ChatML (Qwen and others) and of Llama 3.

InternLM names the tool after its role; Llama 3 ends a turn that calls a tool with `<|eom_id|>`.
"""

log = structlog.get_logger()

router = APIRouter(
    prefix="/compat", route_class=StrictRoute, responses=RESPONSES, tags=["Other trainers"]
)


async def _limited_caller(
    request: Request,
    services: UsesServices,
    _key: Annotated[str, Path(alias="key", description="An API key with no scope but these")],
) -> Caller:
    """Return the caller whose key stands in the path, if the key can do little else than score."""
    caller = caller_of(request)
    if await services.authenticator.requires_key() and not caller.scopes <= _SCOPES:
        raise Forbidden(
            "a key in a path is read by who reads the trainer's settings: use one with the scope "
            "'score', or 'score' and 'induce', alone",
            code="too_many_scopes",
        )
    if "score" not in caller.scopes:
        raise Forbidden("this call needs a key with the scope 'score'", code="missing_scope")
    return caller


LimitedCaller = Annotated[Caller, Depends(_limited_caller)]


async def _group(
    size: Annotated[
        int, PlainInteger, Query(ge=1, le=256, description="Rollouts of each prompt in a step")
    ],
    wait_s: Annotated[
        int, PlainInteger, Query(ge=0, le=120, description="Seconds to wait for all of them")
    ] = 60,
) -> schema.ArrivingGroup:
    return schema.ArrivingGroup(key="-", size=size, wait_s=wait_s)


ArrivingGroup = Annotated[schema.ArrivingGroup, Depends(_group)]
RunId = Annotated[schema.Identifier | None, Query(description="The run, for budgets and usage")]


@router.post("/openrlhf/{key}/get_reward", summary="Score rollouts for OpenRLHF")
async def openrlhf_reward(
    payload: schema.OpenRLHFQuery,
    caller: LimitedCaller,
    services: UsesServices,
    request: Request,
    group: ArrivingGroup,
    run: RunId = None,
) -> schema.OpenRLHFReward:
    """Answer when the group of a prompt is whole, or `wait_s` after its first rollout.

    A reward that is not known is answered with the mean of the group's known ones, so that its
    advantage is 0, and `extra_logs.unscored` is 1. Where none is known the answer is an error: 503
    where a retry may help; 402, 422 or 502 where it does not.
    """
    labels = payload.labels or [None] * len(payload.query)
    if not len(payload.query) == len(payload.prompts) == len(labels):
        raise Unprocessable(
            "query, prompts and labels must have the same length", code="invalid_value"
        )
    asked = [
        (chat(prompt), _response(query, prompt), _rubric_id(label))
        for query, prompt, label in zip(payload.query, payload.prompts, labels, strict=True)
    ]
    known = await _rewards(request, services, caller, asked, group, run, OPENRLHF_MS)
    rewards = [each.reward for each in known]
    unscored = [float(each.unscored) for each in known]
    # Of several queries OpenRLHF would give each the whole list.
    return schema.OpenRLHFReward(
        rewards=rewards if len(known) > 1 else rewards[0],
        scores=rewards if len(known) > 1 else rewards[0],
        extra_logs={"unscored": unscored if len(known) > 1 else unscored[0]},
    )


@router.post("/slime/{key}", summary="Score a rollout for slime")
async def slime_reward(
    payload: schema.SlimeSample,
    caller: LimitedCaller,
    services: UsesServices,
    request: Request,
    group: ArrivingGroup,
    run: RunId = None,
) -> float:
    """Answer when the group of the prompt is whole, or `wait_s` after its first rollout.

    A reward that is not known is answered with the mean of the group's known ones, so that its
    advantage is 0. Where none is known the answer is an error: 503 where a retry may help; 402, 422
    or 502 where it does not.
    """
    prompt = chat(payload.prompt) if isinstance(payload.prompt, str) else payload.prompt
    asked = [(prompt, without_end(payload.response), _rubric_id(payload.label))]
    [known] = await _rewards(request, services, caller, asked, group, run, SLIME_MS)
    return known.reward


async def _rewards(
    request: Request,
    services: UsesServices,
    caller: Caller,
    asked: list[tuple[Any, str, str | None]],
    group: schema.ArrivingGroup,
    run: str | None,
    within_ms: int,
) -> list[KnownReward]:
    try:
        payloads = [
            schema.RolloutRequest(
                group=group,
                prompt=prompt,
                rubric_id=rubric_id,
                rollout=schema.Rollout(id="-", text=text),
                reuse="if_fresh" if "induce" in caller.scopes else "frozen",
                run=schema.Run(id=run, step=0) if run else None,
            )
            for prompt, text, rubric_id in asked
        ]
    except ValidationError as error:
        # What a chat template wrote, or a label names, need not be valid in a rollout's request.
        raise RequestValidationError(error.errors()) from error
    for payload in payloads:
        require_induce(caller, payload)
    deadline = services.scores.deadline(within_ms)
    async with asyncio.timeout_at(deadline.at + GRACE_S):
        try:
            known = await while_connected(
                request,
                _all(
                    services.unnamed_groups.score(caller, payload, deadline) for payload in payloads
                ),
            )
        except JudgeFailure as failure:
            raise judge_error(failure) from failure
    if unscored := sum(each.unscored for each in known):
        # Whoever reads only the reward does not see it.
        log.warning("unknown_rewards_replaced", team=caller.team, rollouts=unscored)
    return known


async def _all(scores: Iterable[Awaitable[KnownReward]]) -> list[KnownReward]:
    """Return the rewards; where one raises, cancel the others."""
    tasks = [asyncio.ensure_future(score) for score in scores]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _response(query: str, prompt: str) -> str:
    """Return what follows the prompt, without the tokens that end it."""
    # A tokenizer may put a token before the prompt.
    _, found, response = query.partition(prompt) if prompt else ("", "", "")
    if not found:
        raise Unprocessable(
            "a query must hold its prompt and then the response",
            code="invalid_value",
            param="query",
        )
    return without_end(response)


def without_end(text: str) -> str:
    """Return a text without the special tokens that end it, and the white space around these."""
    backwards, size = text[::-1], 0
    # One by one: a pattern that repeats took 9 times as long for 4 times the text.
    while token := _END_REVERSED.match(backwards, size):
        size = token.end()
    return text[: len(text) - size].rstrip(string.whitespace) if size else text


def chat(prompt: str) -> Any:
    """Return the messages of a prompt that a chat template wrote, else the text.

    The same prompt then has the same rubrics, whichever trainer sends it.
    """
    for begin, end in _TURNS:
        messages, place = [], 0
        while (turn := begin.search(prompt, place)) and (stop := end.search(prompt, turn.end())):
            said = prompt[turn.end() : stop.start()].strip()
            messages.append({"role": turn[1], "content": said})
            place = stop.end()
        if messages:
            return messages
    return prompt


def _rubric_id(label: Any) -> str | None:
    return label if isinstance(label, str) and label.startswith("rub_") else None
