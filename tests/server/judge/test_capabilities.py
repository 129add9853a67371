"""What is learnt of an endpoint, and when it is forgotten."""

from markscheme_server.judge.capabilities import FORM_RETRY_S, Capabilities


def test_a_refused_form_is_tried_again_by_one_call_after_a_while() -> None:
    heard: list[tuple[str, str]] = []
    known = Capabilities(changed=lambda what, detail: heard.append((what, detail)))
    assert known.choose_form(0.0) == "json_schema"
    assert known.simpler_form("json_schema") == "json_object"
    known.use_form("json_object", 0.0)
    assert heard == [("structured_output", "json_object")]
    assert known.choose_form(FORM_RETRY_S - 1) == "json_object"
    assert known.choose_form(FORM_RETRY_S) == "json_schema"
    assert known.choose_form(FORM_RETRY_S + 1) == "json_object"
    known.use_form("json_schema", FORM_RETRY_S + 2)
    assert known.choose_form(FORM_RETRY_S + 3) == "json_schema"
    assert heard[-1] == ("structured_output", "json_schema")


def test_the_form_that_doctor_found_is_where_it_begins() -> None:
    known = Capabilities(initial_form="text")
    assert known.choose_form(0.0) == "text"
    assert known.simpler_form("text") is None


def test_a_form_that_the_operator_set_is_the_only_one() -> None:
    known = Capabilities(forms=("json_object",), initial_form="text")
    assert known.choose_form(0.0) == "json_object"
    assert known.simpler_form("json_object") is None


def test_lengths_and_parameters_are_learnt_once() -> None:
    heard: list[tuple[str, str]] = []
    known = Capabilities(changed=lambda what, detail: heard.append((what, detail)))
    for _ in range(2):
        known.omit("temperature")
        known.rename_length()
        known.cap_length(4096)
    known.cap_length(8192)
    assert known.max_reply_tokens == 4096
    assert heard == [
        ("left_out", "temperature"),
        ("length_name", "max_completion_tokens"),
        ("most_tokens", "4096"),
    ]
