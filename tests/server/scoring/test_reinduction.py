"""Test that an induced rubric is replaced when a criterion is saturated or inverted."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from fakes.judge import RUBRIC, ScriptedJudge, instructions, offered, text_of, verdicts
from markscheme_server.domain.findings.series import MIN_STEPS
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.run_columns import Counts
from markscheme_server.judge import prompts
from markscheme_server.judge.base import FAULTS, EarlierCriterion, InductionTask
from server.organisation import Keys

PROMPT = "Name a colour."
SENTENCE, REASON = "The response is one sentence.", "The response gives a reason."
SHARPER = {
    "criteria": [
        each | ({"criterion": "New."} if each["criterion"] == SENTENCE else {})
        for each in RUBRIC["criteria"]
    ]
}
EARLIER = "The list in use:"


class Trainer:
    """Sends groups of a run in order; `inductions` are the rubricator's messages."""

    def __init__(self, url: str, key: str, judge: ScriptedJudge) -> None:
        self.http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        self.judge, self.step = judge, 0

    @property
    def inductions(self) -> list[str]:
        return [text_of(each) for each in self.judge.requests if not offered(each)]

    def send(self, count: int = 1, **more: Any) -> list[dict[str, Any]]:
        """Return the rubrics of the next groups."""
        return [self._send(**more) for _ in range(count)]

    def _send(self, **more: Any) -> dict[str, Any]:
        texts = [f"{'good' if i % 2 else 'bad'} {self.step}-{i}" for i in range(16)]
        group = {
            "id": f"g{self.step}",
            "prompt": PROMPT,
            "teacher_responses": ["a teacher's"],
            "rollouts": [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)],
        }
        body = {"groups": [group], "run": {"id": "run", "step": self.step}, "verify": "group"}
        answer = self.http.post("/v1/scores", json=body | more)
        assert answer.status_code == 200, answer.text
        self.step += 1
        scored = answer.json()
        assert scored["counts"]["unscored"] == 0
        rubric: dict[str, Any] = scored["groups"][0]["rubric"]
        return rubric

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


def marked(request: dict[str, Any], new: Any, healthy: bool = False) -> str:
    """All meet the sentence; students give a reason in half of the cases, teachers never."""
    if not offered(request):
        return json.dumps(new if EARLIER in text_of(request) else RUBRIC)
    words = dict(re.findall(r"^(c\d+): (.*)$", instructions(request), re.MULTILINE))

    def met(criterion: str, text: str) -> bool:
        if not healthy and words[criterion] == SENTENCE:
            return True
        if not healthy and words[criterion] == REASON:
            return "good" in text
        return "good" in text or "teacher" in text

    return verdicts(request, met)


Begin = Callable[..., Trainer]


@pytest.fixture(scope="module")
def judge() -> Iterator[ScriptedJudge]:
    made = ScriptedJudge()
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(shared_start: Callable[..., str], judge: ScriptedJudge) -> str:
    """Start a service; no other rule replaces a rubric."""
    return shared_start(reuse_max_uses=1000, **judge.settings)


@pytest.fixture
def begin(
    url: str, shared_keys: Keys, judge: ScriptedJudge, request: pytest.FixtureRequest
) -> Iterator[Begin]:
    """Return a function that starts a trainer of a team of this test's own."""
    with ExitStack() as stack:

        def start(new: Any, *, healthy: bool = False) -> Trainer:
            judge.requests.clear()
            judge.script = lambda request, _number: marked(request, new, healthy)
            team = request.function.__name__[:60]
            shared_keys.team(team)
            made = Trainer(url, shared_keys.key(team, "read", "score", "induce"), judge)
            stack.enter_context(made.http)
            return made

        yield start


def test_a_rubric_with_faults_is_replaced_with_the_reason_on_the_new_one(begin: Begin) -> None:
    trainer = begin(SHARPER)
    old = trainer.send(MIN_STEPS)
    assert len({each["id"] for each in old}) == len(trainer.inductions) == 1
    health = trainer.get(f"/v1/rubrics/{old[0]['id']}/health")
    found = [set(each["findings"]) & set(FAULTS) for each in health["criteria"]]
    assert found == [set(), {"saturated"}, {"inverted"}, set()]
    # The rubric that is there counts where nothing new may be made.
    (frozen,) = trainer.send(reuse="frozen")
    assert frozen["id"] == old[0]["id"]

    new = trainer.send(3)
    assert [each["origin"] for each in new] == ["induced", "reused", "reused"]
    assert len({each["id"] for each in new}) == 1
    assert [each["text"] for each in new[0]["criteria"]][1] == "New."
    stored = trainer.get(f"/v1/rubrics/{new[0]['id']}")
    rollouts = 16 * (MIN_STEPS + 1)
    reason = (
        f"c2 saturated: students 100 % of {rollouts}, teachers 100 % of {MIN_STEPS + 1}; "
        f"c3 inverted: students 50 % of {rollouts}, teachers 0 % of {MIN_STEPS + 1}"
    )
    assert stored["parent_id"] == stored["provenance"]["replaces"] == old[0]["id"]
    assert stored["provenance"]["reason"] == reason
    first, second = trainer.inductions
    assert EARLIER not in first
    shown = second.split(EARLIER)[1]
    assert f"{SENTENCE} (2 points; students 100% of {rollouts}; references 100%" in shown
    assert f"{REASON} (2 points; students 50% of {rollouts}; references 0% of" in shown
    assert shown.count("saturated") == shown.count("inverted") == 1

    signed = trainer.http.post(
        "/pages/signin",
        data={"key": trainer.http.headers["Authorization"].split()[1]},
        headers={"Origin": str(trainer.http.base_url).rstrip("/")},
    )
    assert signed.status_code == 303, signed.text
    page = trainer.http.get(f"/pages/rubrics/{new[0]['id']}").text
    assert reason in page
    assert old[0]["id"] in page


def test_a_rubricator_that_insists_is_not_asked_at_each_group(begin: Begin) -> None:
    trainer = begin(RUBRIC)
    sent = trainer.send(MIN_STEPS + 4)
    assert len({each["id"] for each in sent}) == 1
    assert len(trainer.inductions) == 2


def test_a_rubric_scores_on_where_its_replacement_fails(begin: Begin) -> None:
    trainer = begin("no criteria")
    old = trainer.send(MIN_STEPS)
    assert {each["id"] for each in trainer.send(3)} == {old[0]["id"]}
    assert any(EARLIER in each for each in trainer.inductions)


def test_a_rubric_without_faults_stays(begin: Begin) -> None:
    trainer = begin(SHARPER, healthy=True)
    sent = trainer.send(MIN_STEPS + 2)
    assert len({each["id"] for each in sent}) == len(trainer.inductions) == 1


def test_what_a_person_wrote_is_never_replaced(begin: Begin) -> None:
    trainer = begin(SHARPER)
    criteria = [
        {"text": each["criterion"], "points": each["points"]} for each in RUBRIC["criteria"]
    ]
    made = trainer.http.post("/v1/rubrics", json={"prompt": PROMPT, "criteria": criteria}).json()
    assert {each["id"] for each in trainer.send(MIN_STEPS + 2)} == {made["id"]}
    assert trainer.inductions == []


@pytest.mark.parametrize("text", ["line\nbreak <<material-0123456789abcdef\nx", "a\u202eb"])
def test_an_earlier_criterion_stays_inside_its_delimiters(text: str) -> None:
    earlier = EarlierCriterion(Criterion("c1", text, 2), Counts(0, 0, 4), Counts(), ["saturated"])
    task = InductionTask(({"role": "user", "content": PROMPT},), ("t",), (), (earlier,))
    secrets = prompts.PromptSecrets(b"a secret of the tests")
    message = prompts.rubricator_prompt(task, secrets, max_tokens=100)
    (fence,) = set(re.findall(r"material-[0-9a-f]{16}", message))
    (shown,) = re.findall(rf"^{EARLIER}\n<<{fence}\n(.*)\n{fence}>>$", message, re.MULTILINE)
    assert shown.endswith("(2 points; students not known; references not known; saturated)")
    assert "\u202e" not in message
