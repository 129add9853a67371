from typing import Any

from markscheme.integrations.report import MAX_CRITERIA, CriterionRate, RewardReport
from markscheme.schema import Usage


def rate(text: str, met: int, judged: int, rubric: str = "r") -> CriterionRate:
    return CriterionRate("g", rubric, "c1", text, "task_fulfilment", 5, met, judged)


def logged(*rates: CriterionRate) -> dict[str, float]:
    usage = Usage(judge_calls=0, prompt_tokens=0, completion_tokens=0, cached_verdicts=0)
    seen: dict[str, Any] = {}
    RewardReport(0, [], [], [], {}, {}, list(rates), usage, 0.0).log(seen.__setitem__)
    prefix = "rubric/criterion/"
    return {name.removeprefix(prefix): v for name, v in seen.items() if name.startswith(prefix)}


def test_each_criterion_has_a_metric_over_all_rubrics_that_have_it() -> None:
    rates = [
        rate("Has no comma.", 1, 4),
        rate("Has no comma.", 4, 4, "other"),
        rate("It's 5€", 0, 2),
    ]
    assert logged(*rates) == {"has_no_comma": 0.625, "it_s_5": 0.0}


def test_a_criterion_that_is_not_known_has_no_metric() -> None:
    assert logged(rate("Has no comma.", 0, 0)) == {}


def test_long_texts_that_begin_alike_and_texts_without_letters_keep_apart() -> None:
    beginning = "Names the city in which the treaty was signed, and the year "
    names = logged(rate(beginning + "a", 0, 1), rate(beginning + "b", 1, 1), rate("?!", 1, 1))
    assert sorted(names.values()) == [0.0, 1.0, 1.0]
    assert max(map(len, names)) <= 56


def test_beyond_a_limit_none_has_one() -> None:
    assert logged(*(rate(f"Says {n}.", 1, 2) for n in range(MAX_CRITERIA + 1))) == {}
