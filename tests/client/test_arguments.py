"""What may be passed to the clients: ids that are generated, errors that name the argument."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pandas
import pytest

from markscheme import Client, InvalidArgument, MarkschemeError, Rollout, arguments, requests
from markscheme.protocol import to_wire
from markscheme.schema import ScoreRequest

CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}


def ids(groups: Any) -> list[tuple[str, list[str]]]:
    return [
        (group["id"], [rollout["id"] for rollout in group["rollouts"]])
        for group in arguments.groups(groups)
    ]


def test_generated_ids_depend_on_the_position_alone() -> None:
    groups = [{"prompt": "p", "rollouts": ["a", "a"]}, {"prompt": "q", "rollouts": ["b"]}]
    assert ids(groups) == [("g0", ["r0", "r1"]), ("g1", ["r0"])] == ids(groups)
    assert "id" not in groups[0]


def test_generated_ids_make_way_for_the_callers_own() -> None:
    groups = [
        {"prompt": "p", "rollouts": ["a", {"id": "r0", "text": "b"}, {"id": None, "text": "c"}]},
        {"id": "g0", "prompt": "p", "rollouts": ["a"]},
        {"id": "gg0", "prompt": "p", "rollouts": ["a"]},
    ]
    assert ids(groups) == [("ggg0", ["rr0", "r0", "r2"]), ("g0", ["r0"]), ("gg0", ["r0"])]


def test_a_rollout_is_a_text_messages_a_mapping_or_a_model() -> None:
    rollouts = ["text", [CALL], {"text": "t", "truncated": True}, Rollout(id="own", text="m")]
    (plain,) = arguments.groups([{"prompt": "p", "rollouts": rollouts}])
    request = arguments.validated(ScoreRequest, {"groups": [plain]})
    texts = [(rollout.id, rollout.text) for rollout in request.groups[0].rollouts]
    assert texts == [("r0", "text"), ("r1", None), ("r2", "t"), ("own", "m")]
    messages = request.groups[0].rollouts[1].messages
    assert messages is not None
    assert messages[0].tool_calls is not None


def test_columns_of_numpy_and_pandas_are_plain_values() -> None:
    frame = pandas.DataFrame({"prompt": ["p"], "rollouts": [numpy.array(["a", "b"])]})
    frame["rollouts"] = [numpy.array(["a", "b"])]
    assert arguments.groups(frame.to_dict("records")) == [
        {
            "id": "g0",
            "prompt": "p",
            "rollouts": [{"id": "r0", "text": "a"}, {"id": "r1", "text": "b"}],
        }
    ]
    assert to_wire({"points": numpy.int64(5), "cut": numpy.bool_(True)}) == {
        "points": 5,
        "cut": True,
    }
    assert type(to_wire(numpy.int64(5))) is int


def test_a_missing_value_of_pandas_is_no_value() -> None:
    frame = pandas.DataFrame(
        {
            "prompt": ["p", "q"],
            "rollouts": [["a"], ["b"]],
            "rubric_id": ["r", None],
            "id": ["x", None],
        }
    )
    assert [set(group) for group in arguments.groups(frame.to_dict("records"))] == [
        {"id", "prompt", "rollouts", "rubric_id"},
        {"id", "prompt", "rollouts"},
    ]
    assert ids(frame.to_dict("records")) == [("x", ["r0"]), ("g1", ["r0"])]


class Awaited:
    async def __call__(self, _group: Any) -> None: ...


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


DEEP, DEEPISH = nested(5000), nested(300)
GOOD = {"prompt": "p", "rollouts": ["a"]}
WRONG: list[tuple[Callable[[Client], Any], str]] = [
    (lambda c: c.score([]), "groups: must not be empty"),
    (lambda c: c.score(GOOD), "groups: must be a list of groups, not a dict"),
    (lambda c: c.score("text"), "groups: must be a list of groups, not a str"),
    (lambda c: c.score(None), "groups: must be a list of groups, not a NoneType"),
    (lambda c: c.score(["text"]), "groups[0]: must be a group with prompt and rollouts, not a str"),
    (lambda c: c.score([{"prompt": "p"}]), "groups[0].rollouts: is missing"),
    (lambda c: c.score([GOOD | {"rollouts": "a"}]), "groups[0].rollouts: must be a list"),
    (
        lambda c: c.score([GOOD | {"rollouts": ["a", 5]}]),
        "groups[0].rollouts[1]: must be a text",
    ),
    (lambda c: c.score([GOOD | {"rubric_id": 5}]), "groups[0].rubric_id: must be the id"),
    (lambda c: c.score([GOOD | {"id": "g"}] * 2), "group ids must be unique"),
    (lambda c: c.score([GOOD], run=5), "run: must be an object"),
    (lambda c: c.score([GOOD], reuse="never"), "reuse: Input should be 'always_new'"),
    (lambda c: c.score([GOOD], deadline_s=0), "deadline_s: must be a finite number"),
    (lambda c: c.score([GOOD], deadline_s="5"), "deadline_s: must be a finite number"),
    (lambda c: c.induce("p", student_responses="a"), "student_responses: must be a list"),
    (lambda c: c.create_rubric("p", [{"text": "t"}]), "criteria[0].points: is missing"),
    (
        lambda c: c.create_rubric("p", [{"text": "t", "points": "5"}]),
        "criteria[0].points: must be a whole number",
    ),
    (lambda c: c.create_rubric("p", [{"text": "t", "points": 1}], tags="red"), "tags: must be a"),
    (
        lambda c: c.create_rubric("p", [{"text": "t", "point": 1}]),
        "criteria[0].points: is missing; point is not known here",
    ),
    (lambda c: c.rubric(["rub_1"]), "rubric_id: must be the id of a rubric or a Rubric"),
    (lambda c: c.rubric(""), "rubric_id: must not be empty"),
    (lambda c: c.rubric("rub_\ud800"), "rubric_id: must not contain"),
    (lambda c: c.usage(since="2026-01-01"), "since: must be a date, not a str"),
    (lambda c: c.score([GOOD], on_group="show"), "on_group: must be a function, not a str"),
    (lambda c: c.score([GOOD], on_group=Awaited()), "on_group: must not be async"),
    (lambda c: c.rubrics(tags="red"), "tags: must be a list, such as ['red']"),
    (lambda c: c.rubrics([{"role": "user"}]), "prompt[0].content: is missing"),
    (lambda c: c.rubrics(5), "prompt: must be a text or a list of messages"),
    (lambda c: c.usage("team"), "group_by: must be a list, such as ['team']"),
    (lambda c: c.teach("p", 0), "count: "),
    (lambda c: c.import_rubric(7, "native"), "content: must be an object"),
    (lambda c: c.import_rubric(DEEP, "native"), "content: is nested too deeply"),
    (lambda c: c.score([GOOD | {"rollouts": [[DEEP]]}]), "groups[0]: is nested too deeply"),
    (lambda c: c.create_rubric("p", [{"text": "t", "points": 1}], metadata=DEEP), "metadata: "),
    (lambda c: c.create_rubric("p", [{"text": "t", "points": 1}], metadata=DEEPISH), "metadata: "),
    (lambda c: c.rubrics(text=DEEP), "text: is nested too deeply"),
    (lambda c: c.rubrics(tags=["red", 5]), "tags[1]: must be a text, not a int"),
    (lambda c: c.usage([5]), "group_by[0]: must be a text, not a int"),
    (lambda c: c.run("x" * 70_000), "an argument that is part of the address is too long"),
    (lambda c: c.score([GOOD], deadline_s=10**400), "deadline_s: must be a finite number"),
    (lambda c: c.score([GOOD], deadline_s=1e308), "deadline_s: must be a finite number"),
    (
        lambda c: c.export_rubric("rub_1", "ropd", allow_loss="no"),
        "allow_loss: must be true or false",
    ),
    (lambda c: c.add_run_records("r", [1]), "records: must have the metrics of each step by name"),
    (lambda c: c.add_run_records("r", {0: 1.0}), "records: must have the metrics of each step"),
    (lambda c: c.add_run_records("r", {0: {"loss": "high"}}), "records[0].metrics.loss: Input"),
    (lambda c: c.add_run_records("r", {0: {"loss": 10**400}}), "records[0].metrics.loss: "),
]


def test_flags_and_metrics_may_be_numpys_and_pandas() -> None:
    flags = (numpy.True_, numpy.False_, 1)
    calls = [requests.export_rubric("rub_1", "ropd", flag) for flag in flags]
    assert [call.params["allow_loss"] for call in calls if call.params] == [1, 0, 1]
    frame = pandas.DataFrame({"loss": [0.5, float("nan")]}, index=[3, 4])
    call = requests.add_run_records("r", dict(frame.iterrows()))
    assert call.json["records"] == [
        {"step": 3, "metrics": {"loss": 0.5}},
        {"step": 4, "metrics": {"loss": None}},
    ]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_argument_is_named(call: Callable[[Client], Any], message: str) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(InvalidArgument) as caught:
        call(client)
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, MarkschemeError)
    assert isinstance(caught.value, ValueError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.param) == (str(caught.value), caught.value.param)


def test_a_run_may_be_given_by_its_id() -> None:
    call, _ = requests.score(
        [{"prompt": "p", "rollouts": ["x"]}],
        *("if_fresh", "rollout", False, 0, "run-7", None, None, None, "auto", None, None, "zero"),
        None,
    )
    assert call.json["run"] == {"id": "run-7", "step": 0}
