"""Test rubrics in other formats: their content, what is lost, refusals, and no other errors."""

import json
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme.exchange import (
    Imported,
    Malformed,
    NotRepresentable,
    ReferenceAnswer,
    decode_losses,
    dump,
    encode_losses,
    load,
)
from markscheme.exchange.paths import same
from markscheme.schema import Criterion, Message, Provenance, Rubric
from markscheme.text import is_blank
from markscheme.vocabulary import CATEGORIES, EXCHANGE_FORMATS, ExchangeFormat, Role

PROMPT = (Message(role="user", content="Name a colour."),)
WITHOUT_PROMPT = ("ropd", "verifiers")


def rubric(
    *criteria: Criterion, prompt: tuple[Message, ...] = PROMPT, tags: tuple[str, ...] = ()
) -> Rubric:
    return Rubric(
        id="rub_1",
        version=1,
        parent_id=None,
        prompt_key="k",
        prompt=list(prompt),
        content_hash="h",
        team="red",
        visibility="private",
        shared_with=[],
        criteria=list(criteria),
        maximum_score=1,
        origin="imported",
        tags=list(tags),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        retired_at=None,
        provenance=Provenance(),
    )


def rubric_of(found: Imported) -> Rubric:
    """Return the rubric that a service would store."""
    return rubric(*found.criteria, prompt=found.prompt, tags=found.tags).model_copy(
        update={"metadata": dict(found.metadata)}
    )


def four(**change: Any) -> list[Criterion]:
    """Four criteria that every format holds; the third changed."""
    return [
        Criterion(
            **({"id": f"c{i}", "text": f"It is {i}.", "points": i} | (change if i == 3 else {}))
        )
        for i in range(1, 5)
    ]


@pytest.mark.parametrize("format", ["ropd", "healthbench", "rar", "verifiers"])
def test_that_a_criterion_may_not_apply_is_a_loss_elsewhere(format: ExchangeFormat) -> None:
    made = rubric(*four(may_not_apply=True))
    with pytest.raises(NotRepresentable, match="criterion c3: .* may_not_apply") as refused:
        dump(made, format)
    assert refused.value.allowable
    assert any("may_not_apply" in loss for loss in dump(made, format, allow_loss=True).losses)
    native = load(dump(made, "native").content, "native")
    assert [c.may_not_apply for c in native.criteria] == [False, False, True, False]


def ropd(**change: Any) -> dict[str, Any]:
    return {
        "schema_version": "ropd.rubric.v1",
        "maximum_score": 10,
        "rubrics": [
            {
                "criterion_id": f"c{i}",
                "category": "Task Completion",
                "criterion": f"It is {i}.",
                "points": i,
            }
            for i in range(1, 5)
        ],
    } | change


def ropd_row(**change: Any) -> dict[str, Any]:
    content = ropd()
    content["rubrics"][0] |= change
    return content


def healthbench(**change: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "My arm is numb."}],
        "prompt_id": "p",
        "canary": "x",
        "example_tags": ["theme:emergency_referrals"],
        "ideal_completions_data": None,
        "rubrics": [
            {"criterion": "It says to call for help.", "points": 10, "tags": []},
            {"criterion": "It names a medicine.", "points": -6, "tags": []},
        ],
    } | change


def rar(*weights: Any, **change: Any) -> dict[str, Any]:
    return {
        "question": "Why?",
        "rubric": [
            {"title": f"c{i}", "description": f"It is {i}.", "weight": weight}
            for i, weight in enumerate(weights or (5,), 1)
        ],
    } | change


def verifiers(**change: Any) -> dict[str, Any]:
    return {
        "criteria": [
            {"name": "c1", "text": "It is kind."},
            {"name": "c2", "text": "It is short."} | change,
        ]
    }


# What each format says


def test_ropd_is_read_as_its_reference_reads_it() -> None:
    content = ropd()
    for row, name in zip(content["rubrics"], ("C01", "c2", "c003", "C4"), strict=True):
        row["criterion_id"] = name
    content["rubrics"][1]["category"] = "observable_quality"
    content["rubrics"][2]["category"] = "General  Reasoning Quality"
    found = load(content, "ropd", prompt="Count.")
    assert [(c.id, c.points, c.category) for c in found.criteria] == [
        ("c1", 1, "task_fulfilment"),
        ("c2", 2, "observable_quality"),
        ("c3", 3, "general_reasoning"),
        ("c4", 4, "task_fulfilment"),
    ]
    assert found.prompt == (Message(role="user", content="Count."),)
    assert found.losses == ()


def test_a_rubric_is_written_as_ropds_reference() -> None:
    written = dump(rubric(*four(category="general_reasoning")), "ropd").content
    assert written["maximum_score"] == 10
    assert written["rubrics"][2] == {
        "criterion_id": "c3",
        "category": "general_reasoning",
        "criterion": "It is 3.",
        "points": 3,
    }


def test_a_row_of_healthbench() -> None:
    found = load(healthbench(), "healthbench")
    assert [(c.id, c.text, c.points) for c in found.criteria] == [
        ("c1", "It says to call for help.", 10),
        ("c2", "It names a medicine.", -6),
    ]
    assert found.tags == ("theme:emergency_referrals",)
    assert found.losses == ()


def test_tags_of_healthbenchs_criteria_are_metadata() -> None:
    content = healthbench()
    tags = ["level:example", "axis:accuracy", "category:general_reasoning"]
    content["rubrics"][1]["tags"] = tags
    found = load(content, "healthbench")
    assert found.losses == ()
    assert found.criteria[1].category == "general_reasoning"
    assert found.criteria[1].metadata == {"healthbench": {"tags": tags}}


def test_a_row_of_rubrics_as_rewards() -> None:
    found = load(rar(5, 3.0, -1), "rar")
    assert [(c.id, c.points) for c in found.criteria] == [("c1", 5), ("c2", 3), ("c3", -1)]
    content = rar(5, reference_answer="Because.", question_source="own", rubric_count=1)
    content["rubric"][0]["title"] = "Names the Cause"
    found = load(content, "rar")
    assert found.losses == ()
    assert [c.id for c in found.criteria] == ["c1"]
    assert found.criteria[0].metadata == {"rar": {"title": "Names the Cause"}}
    assert found.metadata["rar"]["question_source"] == "own"
    assert found.references == (ReferenceAnswer("Because.", "rar reference"),)


def test_a_file_of_verifiers() -> None:
    found = load(verifiers(weight=4.0, choices=["No", "YES"]), "verifiers", prompt="Be kind.")
    assert [(c.id, c.text, c.points) for c in found.criteria] == [
        ("c1", "It is kind.", 1),
        ("c2", "It is short.", 4),
    ]
    named = load(verifiers(name="brevity"), "verifiers", prompt="Be kind.")
    assert [(c.id, c.metadata["verifiers"]["name"]) for c in named.criteria] == [
        ("c1", "c1"),
        ("c2", "brevity"),
    ]


def test_native_holds_all_that_a_rubric_says() -> None:
    full = rubric(
        Criterion(
            id="c7",
            text="Short.",
            points=-100,
            category="general_reasoning",
            source="be short",
            check={"kind": "count", "of": "commas", "min": 1},
        ),  # type: ignore[arg-type]
        Criterion(id="c2", text=" x ", points=100),
        prompt=(Message(role="system", content=""), Message(role="tool", content="x")),
        tags=("a:b", "ü"),
    )
    exported = dump(full, "native")
    assert exported.losses == ()
    assert exported.content["schema_version"] == "markscheme.rubric.v1"
    found = load(json.loads(json.dumps(exported.content)), "native")
    assert (list(found.prompt), list(found.criteria), list(found.tags)) == (
        full.prompt,
        full.criteria,
        full.tags,
    )


# What is lost, and what is refused whatever is allowed


@pytest.mark.parametrize(
    ("change", "format", "loss"),
    [
        ({"check": {"kind": "quoted"}}, "ropd", "criterion c3: ROPD knows no checks"),
        (
            {"source": "three"},
            "healthbench",
            "criterion c3: HealthBench has no place for its source",
        ),
        (
            {"category": "general_reasoning"},
            "rar",
            "c3: Rubrics as Rewards has no place for its category general_reas",
        ),
        (
            {"id": "c9"},
            "healthbench",
            "criterion c9: HealthBench knows no ids; it would come back as c3",
        ),
    ],
)
def test_what_may_be_left_out(change: dict[str, Any], format: ExchangeFormat, loss: str) -> None:
    made = rubric(*four(**change))
    with pytest.raises(NotRepresentable, match=loss) as caught:
        dump(made, format)
    assert caught.value.allowable
    assert list(dump(made, format, allow_loss=True).losses) == caught.value.losses
    assert dump(made, "native").losses == ()


def test_tags_are_left_out_where_there_is_no_place_for_them() -> None:
    made = rubric(*four(), tags=("a", "b"))
    for format in ("ropd", "rar", "verifiers"):
        assert "no place for tags: a, b" in dump(made, format, allow_loss=True).losses[0]  # type: ignore[arg-type]
    assert load(dump(made, "healthbench").content, "healthbench").tags == ("a", "b")


@pytest.mark.parametrize(
    ("made", "format", "refusal"),
    [
        (rubric(*four(points=-2)), "ropd", "criterion c3: ROPD knows no negative points (-2)"),
        (
            rubric(*four(points=-2)),
            "verifiers",
            "criterion c3: verifiers knows no negative points (-2)",
        ),
        (rubric(*four(points=7)), "ropd", "criterion c3: ROPD knows at most 5 points (7)"),
        (rubric(*four()[:3]), "ropd", "ROPD takes 4 to 12 criteria; there are 3"),
        (rubric(*four(text=" ")), "healthbench", "criterion c3: HealthBench takes no blank text"),
        (
            rubric(*four(), prompt=(*PROMPT, *PROMPT)),
            "rar",
            "Rubrics as Rewards holds one question",
        ),
        (
            rubric(*four(), prompt=(Message(role="user", content=" "),)),
            "rar",
            "would not read it: question: must not be blank",
        ),
    ],
)
def test_what_would_change_a_reward_is_not_written(
    made: Rubric, format: ExchangeFormat, refusal: str
) -> None:
    with pytest.raises(NotRepresentable) as caught:
        dump(made, format, allow_loss=True)
    assert refusal in str(caught.value)
    assert not caught.value.allowable
    assert "allow_loss" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "format", "refusal"),
    [
        (rar(1, 0.001), "rar", "rubric: the points are no whole numbers up to 100"),
        (rar(1, 101), "rar", "rubric: the points are no whole numbers up to 100"),
        (rar(-5), "rar", "at least one criterion with positive points"),
        (rar(*[1] * 257), "rar", "there are 257 criteria; a rubric has 256 at most"),
        (
            rar(5, rubric=[{"title": "", "description": "x" * 4001, "weight": 1}]),
            "rar",
            "rubric[0].description: has 4001 characters; a criterion may have 4000",
        ),
        (
            verifiers(choices=["bad", "fair", "good"]),
            "verifiers",
            "criteria[1].choices: are 'bad', 'fair', 'good'",
        ),
        (verifiers(choices=["yes", "no"]), "verifiers", "criteria[1].choices: are 'yes', 'no'"),
        (ropd_row(criterion="x" * 4001), "ropd", "rubrics[0].criterion: has 4001 characters"),
    ],
)
def test_what_would_change_a_reward_is_not_read(
    content: Any, format: ExchangeFormat, refusal: str
) -> None:
    with pytest.raises(NotRepresentable) as caught:
        load(content, format, prompt="x" if format in WITHOUT_PROMPT else None, allow_loss=True)
    assert refusal in str(caught.value)
    assert not caught.value.allowable


def test_a_category_that_is_none_of_ours_is_noted_and_kept() -> None:
    content = ropd_row(category="style")
    found = load(content, "ropd", prompt="x")
    assert found.criteria[0].category == "task_fulfilment"
    assert found.notes[0].startswith("rubrics[0].category: 'style' is none of task_fulfilment")
    assert found.criteria[0].metadata == {"ropd": {"category": "style"}}


def test_tags_that_are_none_of_ours_are_metadata() -> None:
    content = healthbench(example_tags=["two words", *[f"t{i}" for i in range(33)], "t0"])
    found = load(content, "healthbench")
    assert (len(found.tags), found.losses) == (32, ())
    assert dump(rubric_of(found), "healthbench").content == content


# What is not of the format


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        (ropd(maximum_score=11), "ropd", "maximum_score is 11, and the points come to 10"),
        (ropd(note="x"), "ropd", "note: Extra inputs"),
        (ropd_row(why="x"), "ropd", "rubrics[0].why: Extra inputs"),
        (ropd_row(points=6), "ropd", "rubrics[0].points: "),
        (ropd_row(points=1.0), "ropd", "rubrics[0].points: "),
        (ropd_row(points=True), "ropd", "rubrics[0].points: "),
        (ropd_row(criterion=" "), "ropd", "rubrics[0].criterion: must not be blank"),
        (ropd_row(criterion_id="k1"), "ropd", "criterion_id 'k1': ids are c1 to c999"),
        (ropd_row(criterion_id="c0"), "ropd", "criterion_id 'c0'"),
        (ropd_row(criterion_id="c" + "9" * 5000), "ropd", "criterion_id 'c9999"),
        (ropd_row(criterion_id="c٣"), "ropd", "criterion_id"),
        (ropd_row(criterion_id="C02"), "ropd", "criterion_id c2 is there twice"),
        (ropd(rubrics=ropd()["rubrics"][:3]), "ropd", "rubrics: List should have at least 4"),
        (ropd(schema_version="ropd.rubric.v2"), "ropd", "schema_version: "),
        (rar(True), "rar", "rubric[0].weight: "),
        (rar("five"), "rar", "rubric[0].weight: must be a number, not 'five'"),
        (rar(None), "rar", "rubric[0].weight: must be a number, not null"),
        (rar(1e300), "rar", "rubric[0].weight: 1e+300 is no usable number of points"),
        (rar(5e-324), "rar", "rubric[0].weight: 4.94066e-324 is no usable number of points"),
        (rar(float("nan")), "rar", "every number must be finite"),
        (rar(float("-inf")), "rar", "every number must be finite"),
        (rar(10**5000), "rar", "a number is too large"),
        (rar(rubric=[]), "rar", "rubric: holds no criterion that counts"),
        (rar(rubric=None), "rar", "rubric: must be a list, not null"),
        (rar(question=" "), "rar", "question: must not be blank"),
        (rar(question="a\x00"), "rar", "must not contain the NUL character"),
        (rar(note={"\ud800": 1}), "rar", "half of a surrogate pair"),
        (rar(note={1: 1}), "rar", "every name in it must be a string"),
        (rar(note=b"x"), "rar", "a bytes is not JSON"),
        (rar(note=[0] * 100_001), "rar", "more than 100000 values"),
        (verifiers(weight=-1), "verifiers", "criteria[1].weight: must not be negative"),
        (verifiers(name="c1"), "verifiers", "names of criteria must be unique"),
        (verifiers(choices=None), "verifiers", "criteria[1].choices: "),
        (healthbench(prompt=7), "healthbench", "prompt: must be a text or a list of messages"),
        (
            healthbench(prompt=[{"role": "narrator", "content": "x"}]),
            "healthbench",
            "prompt[0].role: ",
        ),
        ({"prompt": "x", "criteria": []}, "native", "schema_version: is missing"),
        (
            healthbench(rubrics=[{"criterion": "x", "points": 1, "n": "a\x00"}]),
            "healthbench",
            "rubrics[0].n: must not contain the NUL character",
        ),
        (rar(reference_answer={"a": [float("inf")]}), "rar", "reference_answer.a[0]: every"),
        ([], "native", "must be a JSON object"),
        (None, "rar", "must be a JSON object"),
        ({}, "toml", "there are native, ropd,"),
    ],
)
def test_what_is_not_of_the_format_is_named(content: Any, format: Any, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        load(content, format, prompt="x" if format in WITHOUT_PROMPT else None, allow_loss=True)
    assert message in str(caught.value)
    assert caught.value.param == "content"


def test_nothing_deep_or_endless_is_followed() -> None:
    deep: Any = "x"
    for _ in range(10_000):
        deep = [deep]
    endless: list[Any] = []
    endless.extend([endless, endless])
    for hostile in (deep, endless):
        with pytest.raises(Malformed):
            load(rar(note=hostile), "rar")


@pytest.mark.parametrize("format", ["native", "ropd", "healthbench", "rar", "verifiers"])
def test_the_prompt_is_given_where_there_is_none_and_only_there(format: ExchangeFormat) -> None:
    content = dump(rubric(*four()), format).content
    wrong, right = (None, "x") if format in WITHOUT_PROMPT else ("x", None)
    with pytest.raises(Malformed, match="holds no prompt|brings its prompt itself") as caught:
        load(content, format, prompt=wrong)
    assert caught.value.param == "prompt"
    assert len(load(content, format, prompt=right).criteria) == 4
    if right:
        for bad in ("", "\x00", [], "\ud800"):
            with pytest.raises(Malformed):
                load(content, format, prompt=bad)


# Any rubric, anything

TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=60
).filter(lambda text: not is_blank(text))
CHECKS: st.SearchStrategy[Any] = st.none() | st.sampled_from(
    [
        {"kind": "max_words", "value": 3},
        {"kind": "lowercase", "share": 0.3},
        {"kind": "count", "of": "commas", "max": 2},
        {"kind": "all_of", "checks": [{"kind": "quoted"}, {"kind": "regex", "pattern": "a+"}]},
    ]
)


@st.composite
def rubrics(draw: st.DrawFn) -> Rubric:
    ids = draw(
        st.lists(st.integers(1, 999), min_size=1, max_size=13, unique=True)
        | st.integers(1, 13).map(lambda n: list(range(1, n + 1)))
    )
    points = st.integers(1, 5) | st.integers(-100, 100).filter(bool)
    bare = draw(st.booleans())
    criteria = [
        Criterion(
            id=f"c{i}",
            text=draw(TEXTS),
            points=draw(points),
            category=draw(st.sampled_from(CATEGORIES)),
            check=None if bare else draw(CHECKS),
            source=None if bare else draw(st.none() | TEXTS),
        )
        for i in ids
    ]
    criteria[0] = criteria[0].model_copy(update={"points": abs(criteria[0].points)})
    prompt = draw(
        st.lists(
            st.builds(Message, role=st.sampled_from(get_args(Role)), content=TEXTS | st.just("")),
            min_size=1,
            max_size=3,
        )
        | TEXTS.map(lambda text: [Message(role="user", content=text)])
    )
    tags = (
        []
        if bare
        else draw(st.lists(st.sampled_from(("a", "b:c", "d/e")), max_size=3, unique=True))
    )
    return rubric(*criteria, prompt=tuple(prompt), tags=tuple(tags))


@given(made=rubrics(), format=st.sampled_from(EXCHANGE_FORMATS))
def test_what_is_written_is_read_again(made: Rubric, format: ExchangeFormat) -> None:
    """Without losses it is the same rubric; with them, what would change a reward is."""
    try:
        exported = dump(made, format, allow_loss=True)
    except NotRepresentable:
        assert format != "native"
        return
    prompt = made.prompt if format in WITHOUT_PROMPT else None
    content = json.loads(json.dumps(exported.content, allow_nan=False))
    found = load(content, format, prompt=prompt)
    assert list(found.prompt) == made.prompt
    assert [(c.text, c.points) for c in found.criteria] == [
        (c.text, c.points) for c in made.criteria
    ]
    if not exported.losses:
        bare = [c.model_copy(update={"metadata": {}}) for c in found.criteria]
        assert (bare, list(found.tags)) == (made.criteria, made.tags)
        assert dump(made, format) == exported
    again = dump(rubric_of(found), format)
    assert (again.content, again.losses) == (exported.content, ()), (
        "what came back is held without loss"
    )


ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([10**400, "c1", "ropd.rubric.v1", "\ud800", "\x00", b"x", object()]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["model_config", "__class__", "points", "tags", "x", "\ud800"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def a_content(format: ExchangeFormat) -> Any:
    if format == "mapped":
        return rar(5, 3)
    if format in ("native", "ropd", "healthbench", "rar", "verifiers"):
        return dump(rubric(*four()), format).content
    file = Path(__file__).parent / "rubric_rows" / f"{format}.jsonl"
    return json.loads(file.read_text("utf-8").splitlines()[0])


@given(data=st.data(), format=st.sampled_from(EXCHANGE_FORMATS), allow=st.booleans())
def test_whatever_is_sent_is_read_or_refused(
    data: st.DataObject, format: ExchangeFormat, allow: bool
) -> None:
    """A sound content with anything in any one place of it, or beside what is there."""
    content: Any = a_content(format)
    mapping: Any = {"prompt": "question", "criteria": "rubric", "text": "description"}
    places = [(content, key) for key in content]
    for inner in list(content.values()):
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            places += [(inner, 0), *((inner[0], key) for key in [*inner[0], "x", "model_config"])]
    place, key = data.draw(st.sampled_from([*places, (content, "x")]))
    place[key] = data.draw(ODD)
    try:
        found = load(
            content,
            format,
            prompt="x" if format in WITHOUT_PROMPT else None,
            allow_loss=allow,
            mapping=mapping if format == "mapped" else None,
        )
        said = ""
    except (Malformed, NotRepresentable) as error:
        found, said = None, str(error)
    assert found is None or found.criteria
    assert (found is None) == bool(said.encode())
    assert len(said) < 20_000
    if found is not None and format != "native" and not found.losses:
        assert same(dump(rubric_of(found), format).content, content)


@given(
    losses=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), max_size=5
    )
)
def test_losses_travel_in_a_header(losses: list[str]) -> None:
    line = encode_losses(losses)
    assert all(" " <= letter <= "~" for letter in line)
    assert decode_losses(line) == tuple(losses)


def test_a_long_line_of_losses_is_cut_and_says_so() -> None:
    line = encode_losses(["x" * 90] * 100)
    assert len(line) < 2050
    assert decode_losses(line)[-1] == "and 79 more"
    assert decode_losses(encode_losses(["ü" * 2000])) == ("1 losses",)


def test_its_errors_travel_between_processes() -> None:
    for error in (Malformed("no", "prompt"), NotRepresentable(["a"], True)):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
