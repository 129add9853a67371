"""Finding rubrics by what they say and how they fared: over the wire, on both databases."""

from server.api.rubric_calls import FLAT, SPREAD, ask, found, make, score
from server.organisation import Team


def test_each_filter_alone_and_together(member: Team) -> None:
    red, blue = member("red"), member("blue")
    poem = make(
        red,
        "Write a poem about the running rivers of Bavaria.",
        "rivers",
        tags=["verse", "nature"],
        category="observable_quality",
    )
    letter = make(red, "Write a letter to a bank.", "refund", tags=["verse"])
    theirs = make(blue, "Write a poem about mountains.", "peaks", share=True)
    induced = red(
        "POST",
        "/v1/rubrics:induce",
        {
            "prompt": "Describe autumn. Do not use any commas.",
            "student_responses": ["red, brown"],
            "teacher_responses": ["Golden leaves fall"],
        },
    ).json()
    everything = [induced["id"], theirs, letter, poem]
    assert found(red) == everything
    assert found(red, text="river") == [poem], "by its stem, as the prompt has it"
    assert found(red, text="poem write") == [theirs, poem]
    assert found(red, text="refunds") == [letter], "in a criterion"
    assert found(red, text="poem bank") == []
    assert found(red, tag="verse") == [letter, poem]
    assert found(red, tag=["nature", "verse"]) == [poem]
    assert found(red, tag="vers") == []
    assert found(red, category="observable_quality", origin="imported") == [poem]
    assert found(red, team="blue") == [theirs]
    assert found(red, team="red", text="poem") == [poem]
    rubricator = induced["provenance"]["rubricator"]
    assert found(red, rubricator=rubricator[:7]) == [induced["id"]]
    assert found(red, rubricator="_" * 7) == found(red, teacher_model="gpt") == []
    red("PATCH", f"/v1/rubrics/{letter}", {"retired": True})
    assert found(red) == everything, "retired ones are listed, as long as nobody asks for others"
    assert (found(red, retired=True), found(red, retired=False, tag="verse")) == ([letter], [poem])
    assert found(
        red,
        text="poem",
        tag=["verse"],
        category="observable_quality",
        team="red",
        retired=False,
        limit=1,
    ) == [poem]


def test_the_teachers_model_is_found(member: Team) -> None:
    red, prompt = member("red"), "Describe spring. Do not use any commas."
    red(
        "POST",
        "/v1/teacher-responses",
        {"entries": [{"prompt": prompt, "responses": ["Buds open"], "model": "gpt-9"}]},
    )
    made = red(
        "POST", "/v1/rubrics:induce", {"prompt": prompt, "student_responses": ["red, green"]}
    ).json()
    assert found(red, teacher_model="gpt-9") == [made["id"]]
    assert found(red, teacher_model="gpt-") == []


def test_pages_of_what_is_looked_for(member: Team) -> None:
    red = member("red")
    made = [make(red, f"Write poem {i}.", tags=["even" if i % 2 == 0 else "odd"]) for i in range(7)]
    for i, rubric in enumerate(made):
        score(red, rubric, f"Write poem {i}.", SPREAD if i != 4 else FLAT)
    for filters, expected in (
        ({"text": "poem", "tag": "even"}, made[6::-2]),
        ({"min_quality": 0.5, "tag": "even"}, [made[6], made[2], made[0]]),
    ):
        seen: list[str] = []
        more: dict[str, str] = {}
        while True:
            page = ask(red, **filters, limit=2, **more).json()
            seen += [rubric["id"] for rubric in page["data"]]
            if not page["has_more"]:
                break
            more = {"after": page["data"][-1]["id"]}
        assert seen == expected


def test_quality_is_the_share_of_the_teams_scored_groups_with_spread(member: Team) -> None:
    red, blue, prompt = member("red"), member("blue"), "Name a colour."
    rubric, unused = make(red, prompt, share=True), make(red, "Name another.", share=True)
    etag = red("GET", f"/v1/rubrics/{rubric}").headers["etag"]
    assert ask(red).json()["quality"] == {}
    assert found(red, min_quality=0) == [], "what is not known is not let through"
    score(red, rubric, prompt, SPREAD)
    assert ask(blue).json()["quality"] == {}
    score(blue, rubric, prompt, SPREAD, FLAT, FLAT, FLAT)
    for team, quality in ((red, 1.0), (blue, 0.25)):
        assert ask(team).json()["quality"] == {rubric: quality}
        assert found(team, min_quality=quality) == [rubric]
    assert found(blue, min_quality=0.26) == []
    assert set(found(red)) == {rubric, unused}
    assert red("GET", f"/v1/rubrics/{rubric}").headers["etag"] == etag, "scoring changes no rubric"


def test_nothing_of_another_team_is_found(member: Team) -> None:
    red, blue, prompt = member("red"), member("blue"), "Summarise the merger with Zephyrine."
    secret = make(red, prompt, "zephyrine", tags=["secret"], category="general_reasoning")
    score(red, secret, prompt, ("zephyrine", "grey"))
    filters = {
        "text": "zephyrine",
        "tag": "secret",
        "category": "general_reasoning",
        "team": "red",
        "min_quality": 0.1,
        "origin": "imported",
        "retired": "false",
    }
    assert found(red, **filters) == [secret]
    for name, value in filters.items():
        answer = ask(blue, **{name: value}).json()
        assert (answer["data"], answer["has_more"], answer["quality"]) == ([], False, {})
    mine = make(blue, "Summarise something else.")
    assert found(blue, after=secret) == [], "a place in the list that blue does not see"
    assert found(blue, text="summarise") == [mine]
    red("PATCH", f"/v1/rubrics/{secret}", {"shared_with": ["blue"]})
    del filters["min_quality"]  # of red's groups nothing is told yet
    assert found(blue, **filters) == [secret]
    red("PATCH", f"/v1/rubrics/{secret}", {"shared_with": []})
    assert found(blue, **filters) == []


def test_hostile_questions(member: Team) -> None:
    """No text acts as query syntax; nothing fails, and a text without words finds nothing."""
    red = member("red")
    rubric = make(red, "Compare apples AND oranges, near the words: column*")
    for text in (
        '"apples',
        "apples'",
        "apples AND oranges",
        "NEAR(apples oranges)",
        "words:apples",
        "apples*",
        "^apples",
        "apples; DROP TABLE rubrics",
        "(apples",
        "apples\\",
        "{apples oranges}",
        "apples & oranges | !compare",
        "apples:*B",
        "%apples%",
        "-apples",
        '"apples oranges"',
        "apples\noranges",
        "𝔞𝔭 apples",
        "a" * 1000,
        " ".join("a" * 500),
        "apples " * 125,
        "+".join(f"w{i}" for i in range(200)),
        "😀 é ǆ",
        "apples --",
        "' OR 1=1 --",
    ):
        assert ask(red, text=text).status_code == 200, text
    for text in ("apples oranges", '"oranges" apples', "(Apples) & ORANGES!", "apples * oranges"):
        assert found(red, text=text) == [rubric], text
    for text in ("", " ", "!?*\"'", "-", "__", "\u0301", "…"):
        assert found(red, text=text) == [], text
    for wrong in (
        {"text": "a" * 1001},
        {"text": "a\x00b"},
        {"tag": "two words"},
        {"tag": "a\x00"},
        {"tag": "'--"},
        {"category": "none"},
        {"team": "Red!"},
        {"team": "\x00"},
        {"min_quality": 1.1},
        {"min_quality": "nan"},
        {"retired": "maybe"},
        {"teacher_model": "a\x00b"},
        {"rubricator": ""},
        {"tag": ["t"] * 33},
        {"origin": "stolen"},
    ):
        assert ask(red, **wrong).status_code == 422, wrong
