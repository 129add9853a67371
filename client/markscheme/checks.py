"""Declarative checks: criteria that code can decide, exactly and for free.

This module defines their form on the wire. The service decides them in
`markscheme_server.rules.checks`.
"""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from markscheme.text import check_valid
from markscheme.vocabulary import View

Phrase = Annotated[
    str, StringConstraints(min_length=1, max_length=2000), AfterValidator(check_valid)
]
Phrases = Annotated[list[Phrase], Field(min_length=1, max_length=64)]
Amount = Annotated[int, Field(ge=0, le=1_000_000)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
LanguageCode = Literal[
    "ar",
    "bg",
    "bn",
    "de",
    "el",
    "en",
    "es",
    "fa",
    "fi",
    "fr",
    "gu",
    "he",
    "hi",
    "it",
    "ja",
    "kn",
    "ko",
    "ml",
    "mr",
    "ne",
    "nl",
    "pa",
    "pl",
    "pt",
    "ru",
    "sv",
    "sw",
    "ta",
    "te",
    "th",
    "tr",
    "uk",
    "ur",
    "vi",
    "zh",
]
"""ISO 639-1 codes."""


class _Check(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    view: View | None = Field(
        default=None,
        exclude_if=lambda view: view is None,
        description="Which part of a trajectory it reads: reply, assistant or full. Default: reply",
    )


class _Range(_Check):
    """At least `min` and at most `max`; one of them may be open."""

    min: Amount | None = None
    max: Amount | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "_Range":
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        return self


class MinWords(_Check):
    """At least `value` words."""

    kind: Literal["min_words"]
    value: Amount


class MaxWords(_Check):
    """At most `value` words."""

    kind: Literal["max_words"]
    value: Amount


class Count(_Range):
    """How many of something the response has.

    With `per_words` the bounds apply to each run of that many words.
    """

    kind: Literal["count"]
    of: Literal[
        "sentences",
        "bullets",
        "highlights",
        "placeholders",
        "capital_words",
        "commas",
        "paragraphs",
        "starred_parts",
        "responses",
    ]
    per_words: Annotated[int, Field(ge=1, le=10_000)] | None = None


class Occurrences(_Range):
    """How often `text` occurs, ignoring case."""

    kind: Literal["occurrences"]
    text: Phrase


class LetterCount(_Range):
    """How often one letter occurs, ignoring case."""

    kind: Literal["letter_count"]
    letter: Annotated[
        str, StringConstraints(min_length=1, max_length=1), AfterValidator(check_valid)
    ]


class Contains(_Check):
    """All (or any) of `texts` occur, ignoring case."""

    kind: Literal["contains"]
    texts: Phrases
    match: Literal["all", "any"] = "all"


class Excludes(_Check):
    """None of `texts` occurs as a word or phrase, ignoring case."""

    kind: Literal["excludes"]
    texts: Phrases


class Lowercase(_Check):
    """At least `share` of the letters are lower case."""

    kind: Literal["lowercase"]
    share: Share = 1.0


class Uppercase(_Check):
    """At least `share` of the letters are upper case."""

    kind: Literal["uppercase"]
    share: Share = 1.0


class Quoted(_Check):
    """The whole response is wrapped in double quotation marks."""

    kind: Literal["quoted"]


class Title(_Check):
    """The response has a title in double angular brackets: `<<title>>`."""

    kind: Literal["title"]


class JsonValid(_Check):
    """The whole response is one JSON value; a code fence around it is allowed."""

    kind: Literal["json_valid"]


class StartsWith(_Check):
    """The response begins with `text`, ignoring case and surrounding white space."""

    kind: Literal["starts_with"]
    text: Phrase


class EndsWith(_Check):
    """The response ends with `text`, ignoring case and closing quotation marks."""

    kind: Literal["ends_with"]
    text: Phrase


class Postscript(_Check):
    """The response has a postscript introduced by `marker` (P.S. or P.P.S)."""

    kind: Literal["postscript"]
    marker: Phrase = "P.S."


class Sections(_Check):
    """The response has at least `min` sections, each headed by `marker` and a number."""

    kind: Literal["sections"]
    marker: Phrase
    min: Annotated[int, Field(ge=1, le=1000)]


class ParagraphStart(_Check):
    """Paragraph number `paragraph` of exactly `paragraphs` begins with `word`.

    Paragraphs are separated by blank lines.
    """

    kind: Literal["paragraph_start"]
    paragraphs: Annotated[int, Field(ge=1, le=1000)]
    paragraph: Annotated[int, Field(ge=1, le=1000)]
    word: Phrase


class OneOf(_Check):
    """The response contains one of `options`, case-sensitive."""

    kind: Literal["one_of"]
    options: Phrases


class Language(_Check):
    """Most words of the response are in one language, judged by script and common words."""

    kind: Literal["language"]
    language: LanguageCode


class Regex(_Check):
    """`pattern` is found in the first 100,000 characters of the response.

    The syntax is RE2's: no back-references and no look-around.
    """

    kind: Literal["regex"]
    pattern: Annotated[
        str, StringConstraints(min_length=1, max_length=1000), AfterValidator(check_valid)
    ]
    ignore_case: bool = False


class NotEcho(_Check):
    """At most `max_share` of the response's word triples occur in `text`, the prompt."""

    kind: Literal["not_echo"]
    text: Annotated[
        str, StringConstraints(min_length=1, max_length=200_000), AfterValidator(check_valid)
    ]
    max_share: Share = 0.5


class NoRepetition(_Check):
    """At most `max_share` of the words repeat an earlier word triple."""

    kind: Literal["no_repetition"]
    max_share: Share = 0.3


SimpleCheck = Annotated[
    MinWords
    | MaxWords
    | Count
    | Occurrences
    | LetterCount
    | Contains
    | Excludes
    | Lowercase
    | Uppercase
    | Quoted
    | Title
    | JsonValid
    | StartsWith
    | EndsWith
    | Postscript
    | Sections
    | ParagraphStart
    | OneOf
    | Language
    | Regex
    | NotEcho
    | NoRepetition,
    Field(discriminator="kind"),
]


class AllOf(_Check):
    """Every member holds, for example a format and what makes a response more than empty."""

    kind: Literal["all_of"]
    checks: Annotated[list[SimpleCheck], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _one_view(self) -> "AllOf":
        if any(check.view is not None for check in self.checks):
            raise ValueError("all members read one view: give it beside checks")
        return self


Check = Annotated[
    MinWords
    | MaxWords
    | Count
    | Occurrences
    | LetterCount
    | Contains
    | Excludes
    | Lowercase
    | Uppercase
    | Quoted
    | Title
    | JsonValid
    | StartsWith
    | EndsWith
    | Postscript
    | Sections
    | ParagraphStart
    | OneOf
    | Language
    | Regex
    | NotEcho
    | NoRepetition
    | AllOf,
    Field(discriminator="kind"),
]
