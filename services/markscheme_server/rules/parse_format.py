"""Parse the format that a prompt asks for: case, JSON, title, start, end, language and so on."""

import re
from collections.abc import Iterator

from markscheme_server.rules.constraint import Constraint, quoted_list
from markscheme_server.rules.languages import NAMES
from markscheme_server.rules.numbers import QUANTITY
from markscheme_server.rules.prompt import PromptText, Sentence

_NO = (
    r"\b(?:no|not|n't|never|without|avoid(?:ing)?|refrain(?:ing)? from|free of|free from|zero"
    r"|omit(?:ting)?|"
    r"leave out|leaving out|exclud(?:e|ing)|don't|can't|mustn't|shouldn't|drop)\b[^.;:]{0,70}?"
)
_COMMAS = re.compile(
    rf"(?:{_NO}|n't\b[^.;:]{{0,50}}?)\bcommas?\b|\bcomma[- ](?:free|less)\b|"
    r"\bcommas?\b[^.;]{0,20}\b(?:not allowed|forbidden|banned|off[- ]limits|prohibited|(?:should|"
    r"must) not)\b",
    re.IGNORECASE,
)
_LOWER = r"\blower[- ]?cased?\b|\bsmall letters\b"
_UPPER = (
    r"\ball[- ]caps\b|\bcaps[- ]lock\b|\b(?:all |only |block )?capital letters?\b|\b(?:all |block "
    r"|in |"
    r"no )capitals\b|"
    r"\bcapitals only\b|\bupper[- ]?cased?\b|\bcapitali[sz]ed\b|\bcapitali[sz]ations?\b|"
    r"\bcapitali[sz]e (?:all|every|each)\b(?! first)|\ball capitals?\b|\bfull caps\b|\bin caps\b"
    r"|\bcaps only\b"
)
_CASE_TERM = re.compile(f"(?P<lower>{_LOWER})|(?P<upper>{_UPPER})", re.IGNORECASE)
_NEGATED_BEFORE = re.compile(
    rf"{_NO}$|not a single[^.;:]{{0,60}}$|n't\b[^.;:]{{0,60}}$", re.IGNORECASE
)
_PARTIAL = re.compile(
    r"\b(?:some|few|first|initial|names?|headings?|titles?|each sentence|key)\b|"
    r"(?<!all )(?<!all your )(?<!all the )\bwords? (?:be |are )?(?:in|with) (?:all )?(?:caps"
    r"|capital|upper)|"
    r"capital(?:i[sz]ed)? words?\b|caps words?\b|\bwords? may be\b",
    re.IGNORECASE,
)
_SOME_WORDS = re.compile(rf"\b(?:{QUANTITY})\s+(?:\w+ )?words?\b[^.]{{0,60}}$", re.IGNORECASE)
_MARKS = (
    r"double[- ]?(?:quotes?|quotation)(?: ?marks?)?|double quotations? marks?|quotation marks"
    r"|\bquotes\b|\" ?\""
)
_QUOTED = re.compile(
    rf"(?:(?:wrap|enclos|surround|put|place|insid|within|encas|begin and end|start and "
    rf"end)[^.;]{{0,90}})?(?:{_MARKS})"
    r"(?:[^.;]{0,40}\b(?:around|surround|enclos|wrap|begin|at the (?:start"
    r"|beginning))[^.;]{0,50})?",
    re.IGNORECASE,
)
_QUOTED_LEAD = 70
_WHOLE = re.compile(
    r"\b(?:entire|whole|complete|full|response|reply|answer|output|everything|it|all)\b",
    re.IGNORECASE,
)
_PIECE = re.compile(r"\b(?:title|each|every|the (?:word|name|phrase|sentence)s?)\b", re.IGNORECASE)
_TITLE = re.compile(
    r"<<[^<>\n]*>>|<<.{0,12}>>|double[- ]angul\w* brackets?|"
    r"double[- ]angle[d]? brackets?",
    re.IGNORECASE,
)
_JSON = re.compile(r"\bjson\b", re.IGNORECASE)
_JSON_ASKED = re.compile(
    r"\b(?:in|as|using|valid|into|use|a|of|only|return|output|single|be|wrapped)\s+(?:a |an |the "
    r"|valid |single |"
    r"proper )*json|"
    r"json\b[^.]{0,20}\b(?:format|block|object|output|only|array)",
    re.IGNORECASE,
)
_POSTSCRIPT = re.compile(
    r"(?<!\w)P\. ?P\. ?S\b\.?|(?<!\w)PPS\b|(?<!\w)P\. ?S\b\.?|(?<!\w)PS\b|"
    r"\bpost-?script\b",
    re.IGNORECASE,
)
_ENDING = re.compile(
    r"\b(?:end|ends|ending|finish|finishes|conclude|close|closes|closing|sign "
    r"off)\b[^.;\"']{0,80}?\b(?:with|by|"
    r"using|in)\b|"
    r"\b(?:last|final|very end|ending|end of)\b[^.;\"']{0,60}?\b(?:be|is|are|read|say|with|phrase"
    r"|sentence|exactly)\b",
    re.IGNORECASE,
)
_UNQUOTED_PHRASE = re.compile(
    r"(?:\b(?:phrase|sentence|line|words)\b[^.:?!]{0,20}[:,]?|with:"
    r"|with)\s+(?P<phrase>[A-Z][^\n]{5,120})"
)
_NOT_END = re.compile(r"\b(?:each|every|paragraph|postscript|P\.? ?S\b|section)", re.IGNORECASE)
_STARTING = re.compile(
    r"\b(?:start|begin|open|starts|begins|opens)\b[^.;\"']{0,50}?\b(?:with|by)\b", re.IGNORECASE
)
_NOT_START = re.compile(
    r"\b(?:paragraphs?|sections?|postscript|note|each|every|line|chapter|P\.? ?S\b|words? that)",
    re.IGNORECASE,
)
_LANGUAGE = re.compile(
    rf"\b(?:in|using|into|only|use|entirely|be)\s+(?:only\s+|entirely\s+|all\s+|solely\s+|just\s+"
    rf"|proper\s+|simple\s+)*"
    rf"(?:the\s+)?(?P<name>{'|'.join(NAMES)})\b(?!\s+(?:class|history|culture|literature|food"
    rf"|cuisine|style|king|"
    r"people|speaking|lesson|course|teacher|cinema|politics|war|parliament|company|city))",
    re.IGNORECASE,
)
_OFFERS = re.compile(
    r"\b(?:options?|choices?|choose|choosing|pick|select|one of|either|following (?:answers|"
    r"phrases))\b",
    re.IGNORECASE,
)
_OPTION_WORDS = 10
MAX_OPTIONS = 64


def parse_format(prompt: PromptText) -> Iterator[Constraint]:
    """Yield the constraints on the response's look, beginning, end, options and language."""
    for sentence in prompt.sentences:
        if sentence.is_instruction:
            yield from _in_sentence(sentence)
    yield from _ends(prompt)
    yield from _options(prompt)


def _in_sentence(sentence: Sentence) -> Iterator[Constraint]:
    masked = sentence.masked
    if _COMMAS.search(masked):
        yield Constraint(
            {"kind": "count", "of": "commas", "max": 0},
            "The response has no commas.",
            sentence.source,
        )
    yield from _case(sentence)
    quoting = _QUOTED.search(sentence.text)
    if quoting and _quotes_all(sentence.text, quoting):
        yield Constraint(
            {"kind": "quoted"},
            "The whole response is wrapped in double quotation marks.",
            sentence.source,
        )
    if _TITLE.search(sentence.text):
        yield Constraint(
            {"kind": "title"},
            "The response has a title in double angular brackets: <<title>>.",
            sentence.source,
        )
    if _JSON.search(masked) and _JSON_ASKED.search(masked):
        yield Constraint(
            {"kind": "json_valid"}, "The whole response is valid JSON.", sentence.source
        )
    postscript = _POSTSCRIPT.search(sentence.text)
    if postscript:
        letters = re.sub(r"[^a-z]", "", postscript.group().lower())
        marker = (
            "P.P.S"
            if letters == "pps" or re.search(r"P\. ?P\. ?S", sentence.text, re.IGNORECASE)
            else "P.S."
        )
        yield Constraint(
            {"kind": "postscript", "marker": marker},
            f"The response has a postscript headed {marker}",
            sentence.source,
        )
    yield from _starts(sentence)
    yield from _language(sentence)


def _quotes_all(text: str, match: re.Match[str]) -> bool:
    """Return whether the quotation marks enclose the whole response, not a title or a word."""
    around = text[max(0, match.start() - _QUOTED_LEAD) : match.end()]
    acts = re.search(
        r"wrap|enclos|surround|put|plac|insid|within|encas|begin|start|around",
        around,
        re.IGNORECASE,
    )
    return bool(acts and _WHOLE.search(around) and not _PIECE.search(match.group()))


def _case(sentence: Sentence) -> Iterator[Constraint]:
    terms = list(_CASE_TERM.finditer(sentence.masked))
    if not terms or _PARTIAL.search(sentence.masked):
        return
    term = terms[0]
    if term.lastgroup == "upper" and _SOME_WORDS.search(sentence.before(term.end())):
        return
    # "No capital letters" asks for lower case.
    negated = bool(_NEGATED_BEFORE.search(sentence.before(term.start())))
    lower = (term.lastgroup == "lower") != negated
    kind, words = ("lowercase", "lower") if lower else ("uppercase", "upper")
    yield Constraint(
        {"kind": kind}, f"All letters of the response are {words} case.", sentence.source
    )


def _starts(sentence: Sentence) -> Iterator[Constraint]:
    cue = _STARTING.search(sentence.masked)
    if cue is None or _NOT_START.search(sentence.masked[: cue.end()]):
        return
    quotes = [q for q in sentence.quotes_after(cue.end()) if q.start - cue.end() <= 30]
    if (
        quotes
        and not re.search(
            r"transl|something", sentence.masked[cue.end() : quotes[0].start], re.IGNORECASE
        )
        and (not re.match(r"P\.? ?(?:P\.? ?)?S", quotes[0].text))
    ):
        yield Constraint(
            {"kind": "starts_with", "text": quotes[0].text},
            f"The response begins with {quoted_list([quotes[0].text])}.",
            sentence.source,
        )


def _ends(prompt: PromptText) -> Iterator[Constraint]:
    for sentence in prompt.sentences:
        cue = _ENDING.search(sentence.masked) if sentence.is_instruction else None
        if cue is None or _NOT_END.search(sentence.masked[: cue.end()]):
            continue
        quotes = [q for q in sentence.quotes_after(cue.start()) if q.start - cue.end() <= 80]
        if quotes and not re.match(r"P\.? ?(?:P\.? ?)?S\b", quotes[0].text):
            phrase = quotes[0].text
        else:
            bare = _UNQUOTED_PHRASE.search(
                prompt.text,
                sentence.start + cue.start(),
                min(len(prompt.text), sentence.start + cue.end() + 200),
            )
            if quotes or bare is None:
                continue
            phrase = re.split(r"(?<=[.?!])\s", bare["phrase"])[0].strip()
        if len(re.findall(r"\w", phrase)) < 2:
            continue  # such as a lone punctuation mark
        yield Constraint(
            {"kind": "ends_with", "text": phrase},
            f"The response ends with {quoted_list([phrase])}.",
            sentence.source,
        )
        return


def _language(sentence: Sentence) -> Iterator[Constraint]:
    match = _LANGUAGE.search(sentence.masked)
    if match and not re.search(
        r"\b(?:translat|from|teach|learn)\w*\b[^.]{0,40}$",
        sentence.before(match.start()),
        re.IGNORECASE,
    ):
        name = match["name"]
        yield Constraint(
            {"kind": "language", "language": NAMES[name.lower()]},
            f"The response is written in {name.capitalize()}.",
            sentence.source,
            firm=name.lower() != "english",
        )


def _options(prompt: PromptText) -> Iterator[Constraint]:
    for position, sentence in enumerate(prompt.sentences):
        if not sentence.is_instruction:
            continue
        options = _quoted_options(prompt, position) or _bare_options(prompt, position)
        if options:
            options = options[:MAX_OPTIONS]
            yield Constraint(
                {"kind": "one_of", "options": options},
                f"The response gives one of these answers: {quoted_list(options, 'or')}.",
                sentence.source,
            )
            return


def _quoted_options(prompt: PromptText, position: int) -> list[str]:
    """Return quoted options, announced by "one of" or joined by "or"."""
    sentence = prompt.sentences[position]
    quotes = list(sentence.quotes)
    # The options may stand in the sentence after the one that offers them.
    if len(quotes) < 2 and _OFFERS.search(sentence.masked) and position + 1 < len(prompt.sentences):
        quotes = list(prompt.sentences[position + 1].quotes)
        return [q.text for q in quotes] if len(quotes) >= 2 else []
    if len(quotes) < 2 or re.search(
        r"\b(?:not|n't|never|avoid|without|words?|"
        r"keywords?)\b",
        sentence.masked,
        re.IGNORECASE,
    ):
        return []
    if _OFFERS.search(sentence.masked):
        return [q.text for q in quotes]
    lead = re.search(
        r"\b(?:answer|reply|respond|say|state)\b[^.]{0,20}$",
        sentence.before(quotes[0].start),
        re.IGNORECASE,
    )
    joined = all(
        re.fullmatch(r"[\s,]*or\s*|[\s,]+", sentence.masked[a.end : b.start], re.IGNORECASE)
        for a, b in zip(quotes, quotes[1:], strict=False)
    )
    last = sentence.masked[quotes[-2].end : quotes[-1].start]
    return [q.text for q in quotes] if lead and joined and "or" in last.lower() else []


def _bare_options(prompt: PromptText, position: int) -> list[str]:
    """Return unquoted options: short sentences with a word in common.

    Such as "My answer is yes. My answer is no."
    """
    if not _OFFERS.search(prompt.sentences[position].masked):
        return []
    lead = prompt.sentences[position].source.rsplit(":", 1)
    pieces = [lead[1]] if len(lead) == 2 and lead[1].strip() else []
    pieces += [s.source for s in prompt.sentences[position + 1 : position + 9]]
    options: list[str] = []
    shared: set[str] = set()
    for piece in (part.strip(" ,/()") for part in pieces):
        known = set(re.findall(r"\w+", piece.lower()))
        both = known & shared if options else known
        alike = not options or piece.split()[0] == options[0].split()[0]
        if (
            not 1 <= len(known) <= _OPTION_WORDS
            or not both
            or not alike
            or not piece.endswith((".", "!"))
        ):
            break
        options.append(piece)
        shared = both
    return options if len(options) >= 2 else []
