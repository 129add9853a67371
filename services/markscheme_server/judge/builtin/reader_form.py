"""Reading the form a prompt asks for: case, quotation marks, JSON, title, postscript, beginning, end, language."""

import re
from collections.abc import Iterator

from markscheme_server.judge.builtin.candidate import Candidate, listed
from markscheme_server.judge.builtin.languages import NAMES
from markscheme_server.judge.builtin.prompt import PromptText, Sentence

_NO = (r"\b(?:no|not|n't|never|without|avoid(?:ing)?|refrain(?:ing)? from|free of|free from|zero|omit(?:ting)?|"
       r"leave out|leaving out|exclud(?:e|ing)|don't|can't|mustn't|shouldn't|drop)\b[^.;:]{0,70}?")
_COMMAS = re.compile(rf"(?:{_NO}|n't\b[^.;:]{{0,50}}?)\bcommas?\b|\bcomma[- ](?:free|less)\b|"
                     r"\bcommas?\b[^.;]{0,20}\b(?:not allowed|forbidden|banned|off[- ]limits|prohibited|(?:should|must) not)\b",
                     re.IGNORECASE)
_LOWER = r"\blower[- ]?cased?\b|\bsmall letters\b"
_UPPER = (r"\ball[- ]caps\b|\bcaps[- ]lock\b|\b(?:all |only |block )?capital letters?\b|\b(?:all |block |in |no )capitals\b|"
          r"\bcapitals only\b|\bupper[- ]?cased?\b|\bcapitali[sz]ed\b|\bcapitali[sz]ations?\b|"
          r"\bcapitali[sz]e (?:all|every|each)\b(?! first)|\ball capitals?\b|\bfull caps\b|\bin caps\b|\bcaps only\b")
_CASE_TERM = re.compile(f"(?P<lower>{_LOWER})|(?P<upper>{_UPPER})", re.IGNORECASE)
_NEGATED_BEFORE = re.compile(rf"{_NO}$|not a single[^.;:]{{0,60}}$|n't\b[^.;:]{{0,60}}$", re.IGNORECASE)
_PARTIAL = re.compile(
    r"\b(?:some|few|first|initial|names?|headings?|titles?|each sentence|key)\b|\bwords? (?:in|with)\b|"
    r"\b(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten) (?:\w+ )?words?\b|capital(?:i[sz]ed)? words?\b|"
    r"caps words?\b", re.IGNORECASE)
_MARKS = r"double[- ]?(?:quotes?|quotation)(?: ?marks?)?|double quotations? marks?|quotation marks|\bquotes\b|\" ?\""
_QUOTED = re.compile(
    rf"(?:wrap|enclos|surround|put|place|insid|within|encas|begin and end|start and end|bracket)[^.;]{{0,90}}(?:{_MARKS})",
    re.IGNORECASE)
_WHOLE = re.compile(r"\b(?:entire|whole|complete|full|response|reply|answer|output|everything|it|all)\b", re.IGNORECASE)
_PIECE = re.compile(r"\b(?:title|each|every|the (?:word|name|phrase|sentence)s?)\b", re.IGNORECASE)
_TITLE = re.compile(r"<<[^<>\n]*>>|<<.{0,12}>>|double[- ]angul\w* brackets?|double[- ]angle[d]? brackets?", re.IGNORECASE)
_JSON = re.compile(r"\bjson\b", re.IGNORECASE)
_JSON_ASKED = re.compile(
    r"\b(?:in|as|using|valid|into|use|a|of|only|return|output|single|be|wrapped)\s+(?:a |an |the |valid |single |proper )*json|"
    r"json\b[^.]{0,20}\b(?:format|block|object|output|only|array)", re.IGNORECASE)
_POSTSCRIPT = re.compile(r"(?<!\w)P\. ?P\. ?S\b\.?|(?<!\w)PPS\b|(?<!\w)P\. ?S\b\.?|(?<!\w)PS\b|\bpost-?script\b", re.IGNORECASE)
_ENDING = re.compile(
    r"\b(?:end|ends|ending|finish|finishes|conclude|close|closes|closing|sign off)\b[^.;\"']{0,80}?\b(?:with|by|using|in)\b|"
    r"\b(?:last|final|very end|ending|end of)\b[^.;\"']{0,60}?\b(?:be|is|are|read|say|with|phrase|sentence|exactly)\b",
    re.IGNORECASE)
_UNQUOTED_PHRASE = re.compile(r"\b(?:phrase|sentence|line|words)\b[^.:?!]{0,20}[:,]?\s+(?P<phrase>[A-Z][^\n]{5,120})")
_NOT_END = re.compile(r"\b(?:each|every|paragraph|postscript|P\.? ?S\b|section)", re.IGNORECASE)
_STARTING = re.compile(r"\b(?:start|begin|open|starts|begins|opens)\b[^.;\"']{0,50}?\b(?:with|by)\b", re.IGNORECASE)
_NOT_START = re.compile(r"\b(?:paragraphs?|sections?|postscript|note|each|every|line|chapter|P\.? ?S\b|words? that)",
                        re.IGNORECASE)
_LANGUAGE = re.compile(
    rf"\b(?:in|using|into|only|use|entirely|be)\s+(?:only\s+|entirely\s+|all\s+|solely\s+|just\s+|proper\s+|simple\s+)*"
    rf"(?:the\s+)?(?P<name>{'|'.join(NAMES)})\b(?!\s+(?:class|history|culture|literature|food|cuisine|style|king|"
    r"people|speaking|lesson|course|teacher|cinema|politics|war|parliament|company|city))", re.IGNORECASE)
_OPTIONS = re.compile(
    r"\b(?:options?|choices?|choose|choosing|pick|select|one of|either|reply with|answer with|respond with|answers?:|"
    r"following|phrases)\b", re.IGNORECASE)
_OPTION_LIST = re.compile(r"(?:[A-Z][^.,;\n\"'()]{2,60}\.(?:\s*[,/]?\s*(?:or |and )?)){2,6}")


def read_form(prompt: PromptText) -> Iterator[Candidate]:
    """All constraints on how the response looks, begins, ends, and in which language it is."""
    for sentence in prompt.sentences:
        if sentence.asks:
            yield from _in_sentence(sentence)
    yield from _ends(prompt)
    yield from _options(prompt)


def _in_sentence(sentence: Sentence) -> Iterator[Candidate]:
    masked = sentence.masked
    if _COMMAS.search(masked):
        yield Candidate({"kind": "count", "of": "commas", "max": 0}, "The response has no commas.", sentence.source)
    yield from _case(sentence)
    quoting = _QUOTED.search(sentence.text)
    if quoting and _WHOLE.search(quoting.group()) and not _PIECE.search(quoting.group()):
        yield Candidate({"kind": "quoted"}, "The whole response is wrapped in double quotation marks.", sentence.source)
    if _TITLE.search(sentence.text):
        yield Candidate({"kind": "title"}, "The response has a title in double angular brackets: <<title>>.",
                        sentence.source)
    if _JSON.search(masked) and _JSON_ASKED.search(masked):
        yield Candidate({"kind": "json_valid"}, "The whole response is valid JSON.", sentence.source)
    postscript = _POSTSCRIPT.search(sentence.text)
    if postscript:
        letters = re.sub(r"[^a-z]", "", postscript.group().lower())
        marker = "P.P.S" if letters == "pps" or re.search(r"P\. ?P\. ?S", sentence.text, re.IGNORECASE) else "P.S."
        yield Candidate({"kind": "postscript", "marker": marker}, f"The response has a postscript headed {marker}",
                        sentence.source)
    yield from _starts(sentence)
    yield from _language(sentence)


def _case(sentence: Sentence) -> Iterator[Candidate]:
    terms = list(_CASE_TERM.finditer(sentence.masked))
    if not terms or _PARTIAL.search(sentence.masked):
        return
    term = terms[0]
    negated = bool(_NEGATED_BEFORE.search(sentence.masked[: term.start()]))
    lower = (term.lastgroup == "lower") != negated
    kind, words = ("lowercase", "lower") if lower else ("uppercase", "upper")
    yield Candidate({"kind": kind}, f"All letters of the response are {words} case.", sentence.source)


def _starts(sentence: Sentence) -> Iterator[Candidate]:
    cue = _STARTING.search(sentence.masked)
    if cue is None or _NOT_START.search(sentence.masked[: cue.end()]):
        return
    quotes = [q for q in sentence.quotes_after(cue.end()) if q.start - cue.end() <= 30]
    if quotes and not re.match(r"P\.? ?(?:P\.? ?)?S", quotes[0].text):
        yield Candidate({"kind": "starts_with", "text": quotes[0].text},
                        f"The response begins with {listed([quotes[0].text])}.", sentence.source)


def _ends(prompt: PromptText) -> Iterator[Candidate]:
    for sentence in prompt.sentences:
        cue = _ENDING.search(sentence.masked) if sentence.asks else None
        if cue is None or _NOT_END.search(sentence.masked[: cue.end()]):
            continue
        quotes = [q for q in sentence.quotes_after(cue.start()) if q.start - cue.end() <= 80]
        if quotes and not re.match(r"P\.? ?(?:P\.? ?)?S\b", quotes[0].text):
            phrase = quotes[0].text
        else:
            bare = _UNQUOTED_PHRASE.search(prompt.text, sentence.start + cue.start(),
                                           min(len(prompt.text), sentence.start + cue.end() + 200))
            if quotes or bare is None:
                continue
            phrase = re.split(r"(?<=[.?!])\s", bare["phrase"])[0].strip()
        yield Candidate({"kind": "ends_with", "text": phrase}, f"The response ends with {listed([phrase])}.",
                        sentence.source)
        return


def _language(sentence: Sentence) -> Iterator[Candidate]:
    match = _LANGUAGE.search(sentence.masked)
    if match and not re.search(r"\b(?:translat|from|teach|learn)\w*\b[^.]{0,40}$", sentence.masked[: match.start()],
                               re.IGNORECASE):
        name = match["name"]
        yield Candidate({"kind": "language", "language": NAMES[name.lower()]},
                        f"The response is written in {name.capitalize()}.", sentence.source)


def _options(prompt: PromptText) -> Iterator[Candidate]:
    for place, sentence in enumerate(prompt.sentences):
        if not sentence.asks or not _OPTIONS.search(sentence.masked):
            continue
        nearby = prompt.sentences[place : place + 4]
        quotes = [q.text for s in nearby[:2] for q in s.quotes]
        options = quotes if len(quotes) >= 2 and _offers(sentence) else _bare_options(prompt, sentence)
        if options:
            yield Candidate({"kind": "one_of", "options": options},
                            f"The response gives one of these answers: {listed(options, 'or')}.", sentence.source)
            return


def _offers(sentence: Sentence) -> bool:
    return bool(re.search(r"\b(?:options?|choices?|choose|pick|select|one of|either)\b", sentence.masked, re.IGNORECASE))


def _bare_options(prompt: PromptText, sentence: Sentence) -> list[str]:
    """Unquoted options, each a short sentence: "My answer is yes. My answer is no." """
    match = _OPTION_LIST.search(prompt.text, sentence.start, min(len(prompt.text), sentence.start + 600))
    if match is None or not _offers(sentence):
        return []
    options = [o.strip(" ,/") for o in re.findall(r"[A-Z][^.,;\n\"'()]{2,60}\.", match.group())]
    words = [set(o.lower().split()) for o in options]
    return options if len(options) >= 2 and set.intersection(*words) else []
