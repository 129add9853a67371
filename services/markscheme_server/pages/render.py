"""Templates, static files and the content security policy."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from markscheme.vocabulary import REASON_HELP, describe_reasons
from markscheme_server.pages import charts, check_words, words
from markscheme_server.pages.addresses import finding_address, path
from markscheme_server.pages.run_page import split_sentence, steps_of

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""The policy: a page may load this service's files; nothing inline runs."""
MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PLACES = (
    ("runs", "", "Runs"),
    ("rubrics", "rubrics", "Rubrics"),
    ("judges", "judges", "Judges"),
    ("cost", "cost", "Cost"),
)
ADMIN_PLACES = (*PLACES, ("teams", "teams", "Teams"))


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file. `address`: its path below `/pages/`, which changes with its content."""

    content: bytes
    media_type: str
    address: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return the static files by name."""
    found = {}
    for file in (resources.files("markscheme_server.pages") / "static").iterdir():
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        media_type = MEDIA_TYPES[file.name.rpartition(".")[2]]
        found[file.name] = Asset(content, media_type, f"static/{digest}/{file.name}")
    return found


@cache
def environment() -> jinja2.Environment:
    """Return the templates: everything is escaped, and a name that is not given is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("markscheme_server.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    made.globals |= {
        "check_sentence": check_words.sentence,
        "assets": {name: asset.address for name, asset in assets().items()},
        "decimal": words.decimal,
        "dots": charts.dots,
        "fact": words.fact,
        "figure": words.figure,
        "finding_address": finding_address,
        "live": words.LIVE_REPLAYS,
        "moment": words.moment,
        "path": path,
        "percent": words.percent,
        "plural": words.plural,
        "reason_help": REASON_HELP.__getitem__,
        "reason_lines": describe_reasons,
        "replay_states": words.REPLAY_STATES,
        "signed": words.signed,
        "sorts": words.SORTS,
        "sparkline": charts.sparkline,
        "split_sentence": split_sentence,
        "states": words.STATES,
        "steps_of": steps_of,
        "titles": words.FINDINGS,
        "usd": words.usd,
        "whole": words.whole,
    }
    return made


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds the content of every page: header, navigation and forms' token.

    `here`: the relative path to `/pages/`, such as `../`, which works behind any proxy.
    `caller`: who asked, if known. `csrf`: the token of its forms.
    """

    here: str = ""
    place: str | None = None
    caller: Any = None
    signed_in: bool = False
    csrf: str = ""
    refresh: int | None = None


def page(template: str, frame: Frame, **values: Any) -> str:
    """Return the HTML of a page."""
    scopes = frame.caller.scopes if frame.caller is not None else ()
    # The API takes keys, and no cookie.
    own: dict[str, Any] = {"opens_api": "read" in scopes and not frame.signed_in}
    own |= {"report": None, "places": ADMIN_PLACES if "admin" in scopes else PLACES}
    around = {name: getattr(frame, name) for name in Frame.__slots__}
    return environment().get_template(template).render(around | own | values)


@dataclass(frozen=True, slots=True)
class StandAlone:
    """Style sheet and script that a stand-alone file contains, allowed by their hashes."""

    css: Markup
    js: Markup
    policy: str


@cache
def stand_alone() -> StandAlone:
    """Return style sheet, script and policy of a report."""
    css, js = (assets()[name].content for name in ("pages.css", "pages.js"))
    policy = (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return StandAlone(Markup(css.decode()), Markup(js.decode()), policy)


def report(frame: Frame, **values: Any) -> str:
    """Return the HTML of a run and its groups as one file without any link to the service."""
    return (
        environment()
        .get_template("report.html")
        .render(
            {name: getattr(frame, name) for name in Frame.__slots__}
            | {"report": stand_alone(), "places": ()}
            | values
        )
    )


def _hash(content: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
