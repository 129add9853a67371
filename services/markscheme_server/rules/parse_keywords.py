"""Parse which words, phrases and letters a prompt asks for or forbids, and how often."""

import re
from collections.abc import Iterator

from markscheme_server.rules.constraint import Constraint, in_words, quoted_list
from markscheme_server.rules.numbers import QUANTITY, Bounds, parse_bounds
from markscheme_server.rules.prompt import LEAD_CHARACTERS, PromptText, Quote, Sentence

MAX_PHRASES = 64
"""The maximum number of phrases in one check."""

_NOUN = r"(?:(?:these|following) items|(?:key ?)?(?:words?|phrases?|terms?|expressions?|names?))"
_CUE = re.compile(rf"\b{_NOUN}\b(?:\s+(?:are|is|like|such as|of))?\s*:?\s*", re.IGNORECASE)
_USING = re.compile(
    r"\b(?:includ(?:e|es|ing)|contain(?:s|ing)?|mention(?:s|ing)?|us(?:e|es|ing)|incorporat(?:e|es"
    r"|ing)|sa(?:y|ys|ying)|"
    r"work(?:s|ing)? in|feature|insert|utter|have|employ|add|write|put|with|in it|in which|occurs?"
    r"|appears?|turns? up|"
    r"present|in your|in the)\b",
    re.IGNORECASE,
)
_DIRECT = re.compile(
    r"\b(?:mentions?|includes?|says?|contains?|us(?:es?|ing)|saying|mentioning|including"
    r"|containing|incorporate)"
    r"(?: of| things like| anything like| exactly)?\s*$",
    re.IGNORECASE,
)
_TALKED_ABOUT = re.compile(
    r"\b(?:after|before|about|describ(?:es?|ing)|meaning of|defin(?:es?|ing))\s+(?:the|a"
    r"|this)?\s*$",
    re.IGNORECASE,
)
_MENTION = re.compile(
    r"(?:not|n't|never|without|avoid)\s+(?:mention|say)(?:ing)?\s+(?:the\s+|"
    r"of\s+)?(?=\w)",
    re.IGNORECASE,
)
_FORGET = re.compile(r"(?:do not|don't|never) (?:forget|fail|omit|neglect) to\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:not|n't|never|without|avoid(?:s|ing)?|refrain(?:ing)?|exclud(?:e|es|ing)|omit(?:s"
    r"|ting)?|steer clear|"
    r"leav(?:e|ing) out|free of|cannot|can't|don't|doesn't|shouldn't|mustn't|isn't|aren't|no)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_BANNED = re.compile(
    r"\b(?:(?:off[- ]limits|banned|forbidden|prohibited|not allowed|taboo|disallowed|not "
    r"permitted)\b|"
    r"(?:should|must|can|may|do|does|is|are|to)(?: not|n't|not)\b|never\b)",
    re.IGNORECASE,
)
_ITEM = re.compile(r"\s*(?P<item>[^\W_][\w'-]*)")
_SEPARATOR = re.compile(
    r"\s*(?:,\s*(?:and|or|nor|&)?|and/or\b|\band\b|\bor\b|\bnor\b|&|/)\s*", re.IGNORECASE
)
_NOT_ITEMS_TEXT = (
    "appear appears appearing should must is are in at to more less exactly that which can cannot "
    "for with somewhere "
    "anywhere be occurs occur has have no only from you i it this these those they we your the a "
    "an of than as not "
    "do does will would may count limit long or and minimum maximum used use below above "
    "following used "
    "each every all any per so but if when including such like on by"
)
_NOT_ITEMS = frozenset(_NOT_ITEMS_TEXT.split())
_TIMES = re.compile(
    rf"(?<![\w.¤])(?:{QUANTITY})\s+(?:(?:separate|different|distinct|total)\s+)?(?:times?"
    rf"|occurrences?|instances?)\b|"
    r"(?<!\w)(?:(?P<how>at least|at most|no more than|not more than|up to|more than|less than"
    r"|exactly|only)\s+)?"
    r"(?P<few>once|twice|thrice)\b(?P<more>\s+or (?:more|less|fewer))?",
    re.IGNORECASE,
)
_FEW = {"once": 1, "twice": 2, "thrice": 3}
_HOW = {
    "at least": "least",
    "at most": "most",
    "no more than": "most",
    "not more than": "most",
    "up to": "most",
    "more than": "over",
    "less than": "under",
    "exactly": "exact",
    "only": "exact",
}
_LETTER = re.compile(
    r"\b(?:letters?|character)\s+(?:[\"'`]\s*(?P<quoted>[^\s\"'`])\s*[\"'`]|"
    r"(?P<bare>[A-Za-z#!])\b|(?P<sign>[#!?]))",
    re.IGNORECASE,
)


def parse_keywords(prompt: PromptText) -> Iterator[Constraint]:
    """Yield the constraints on words and letters: to use, to avoid, and how often."""
    for sentence in prompt.sentences:
        if not sentence.is_instruction:
            continue
        yield from _letters(sentence)
        yield from _phrases(sentence)


def _letters(sentence: Sentence) -> Iterator[Constraint]:
    for match in _LETTER.finditer(sentence.text):
        letter = (match["quoted"] or match["bare"] or match["sign"]).lower()
        found = _times(sentence.text, match.end(), match.end() + LEAD_CHARACTERS) or _times(
            sentence.text, max(0, match.start() - LEAD_CHARACTERS), match.start()
        )
        if _negated(sentence, match.start(), match.end()):
            found = _turned(found)
        if found and len(letter) == 1:
            text = f"The letter “{letter}” occurs {_often(found)} in the response."
            yield Constraint(
                {"kind": "letter_count", "letter": letter, **found.as_arguments()},
                text,
                sentence.source,
            )


def _turned(found: Bounds | None) -> Bounds | None:
    """Negate an amount: "avoid it" means nowhere, "not more than twice" means at most twice."""
    if found is None:
        return Bounds(None, 0, "exact")
    return Bounds(None, (found.min or 1) - 1, "most") if found.kind == "over" else found


def _often(found: Bounds) -> str:
    return in_words(found.min, found.max, "time") if found.max != 0 else "nowhere"


def _times(text: str, start: int, end: int | None = None) -> Bounds | None:
    """Return the bounds of the first "n times" between two positions."""
    match = _TIMES.search(text, start, len(text) if end is None else end)
    if match is None:
        return None
    if match["few"]:
        amount = _FEW[match["few"].lower()]
        how = _HOW.get((match["how"] or "").lower(), "exact")
        if match["more"]:
            how = "least" if match["more"].endswith("more") else "most"
        return {
            "least": Bounds(amount, None, how),
            "most": Bounds(None, amount, how),
            "over": Bounds(amount + 1, None, how),
            "under": Bounds(None, amount - 1, how),
            "exact": Bounds(amount, amount, how),
        }[how]
    found = parse_bounds(match, text[match.end() : match.end() + 24])
    return found and (Bounds(found.min, None, "least") if found.kind == "about" else found)


def _phrases(sentence: Sentence) -> Iterator[Constraint]:
    for items, start, end in _lists(sentence):
        often = _often_of(sentence, start, end)
        negated = _negated(sentence, start, end)
        if negated and often:
            often = _turned(often)
        texts = [
            quote.text.rstrip(",.;") if quote.text.rstrip(",.;") else quote.text for quote in items
        ]
        if often and often.max == 0:
            yield _excluded(texts, sentence)
        # "At least once" asks for no more than `contains` does.
        elif often and (often.min, often.max) != (1, None):
            for text in texts:
                yield Constraint(
                    {"kind": "occurrences", "text": text, **often.as_arguments()},
                    f"“{text}” occurs {_often(often)} in the response.",
                    sentence.source,
                )
        elif negated:
            yield _excluded(texts, sentence)
        elif often or _USING.search(sentence.masked):
            any_of = bool(
                re.search(r"\b(?:one|any|either) of\b", sentence.before(start), re.IGNORECASE)
            )
            match = {"match": "any"} if any_of and len(texts) > 1 else {}
            yield Constraint(
                {"kind": "contains", "texts": texts, **match},
                f"The response contains {quoted_list(texts, 'or' if match else 'and')}.",
                sentence.source,
            )


def _excluded(texts: list[str], sentence: Sentence) -> Constraint:
    return Constraint(
        {"kind": "excludes", "texts": texts},
        f"The response does without {quoted_list(texts, 'and')}.",
        sentence.source,
    )


def _often_of(sentence: Sentence, start: int, end: int) -> Bounds | None:
    following = [q.start for q in sentence.quotes_after(end)]
    # An amount after the words wins: 'use "cup" twice'. One before them must be close.
    after = _times(sentence.masked, end, following[0] if following else None)
    if after:
        return after
    lead = _TIMES.search(sentence.masked, max(0, start - 60), start)
    if lead is None or re.search(r"[,;]|\bletters?\b", sentence.masked[lead.end() : start]):
        return None
    return _times(sentence.masked, lead.start(), start)


def _lists(sentence: Sentence) -> Iterator[tuple[list[Quote], int, int]]:
    """Yield each list of words with the positions of its cue and of its end."""
    covered = 0
    for cue in _CUE.finditer(sentence.masked):
        if cue.start() < covered or _TALKED_ABOUT.search(sentence.before(cue.start())):
            continue
        items = _quoted_items(sentence, cue.end()) or _bare_items(sentence, cue)
        if items:
            covered = items[-1].end
            yield items, cue.start(), covered
    # "Do not mention rain": no quotation marks and no noun such as "word".
    for cue in _MENTION.finditer(sentence.masked):
        items = _bare_items(sentence, cue)
        if items and cue.start() >= covered:
            covered = items[-1].end
            yield items, items[0].start, covered
    # 'Say "yes"': a verb directly before a short quotation.
    for quote in sentence.quotes:
        if (
            quote.start >= covered
            and _DIRECT.search(sentence.before(quote.start))
            and len(quote.text.split()) <= 6
        ):
            items = _quoted_items(sentence, quote.start)
            covered = items[-1].end
            yield items, quote.start, covered


def _quoted_items(sentence: Sentence, start: int) -> list[Quote]:
    """Return consecutive quotations from ``start`` on, with only separators between them."""
    items: list[Quote] = []
    for quote in sentence.quotes_after(start):
        between = sentence.masked[items[-1].end if items else start : quote.start]
        if not re.fullmatch(
            r"[\s,:(&/\[]*(?:(?:and|or|nor)\s+)?(?:(?:the )?(?:key)?(?:words?|phrases?|"
            r"terms?)\s*)?[:(]?\s*",
            between,
            re.IGNORECASE,
        ):
            break
        items.append(quote)
    return items[:MAX_PHRASES]


def _bare_items(sentence: Sentence, cue: re.Match[str]) -> list[Quote]:
    items: list[Quote] = []
    position = cue.end()
    while match := _ITEM.match(sentence.masked, position):
        word = match["item"]
        if word.lower() in _NOT_ITEMS or word[0].isdigit():
            break
        items.append(Quote(word, match.start("item"), match.end()))
        separator = _SEPARATOR.match(sentence.masked, match.end())
        if separator is None:
            break
        position = separator.end()
    return items[:MAX_PHRASES] if items and _bare_list_is_meant(sentence, cue, items) else []


def _bare_list_is_meant(sentence: Sentence, cue: re.Match[str], items: list[Quote]) -> bool:
    """Return whether unquoted words are a list: it must be announced and closed.

    Such as "the words mass, force and Newton."
    """
    before = re.search(
        r"\b(?:the|keywords?|following|these|words?|terms?)\s*$",
        sentence.before(cue.start()),
        re.IGNORECASE,
    )
    announced = before or "key" in cue.group().lower() or ":" in cue.group() or cue.re is _MENTION
    rest = sentence.masked[items[-1].end :]
    closed = re.match(
        r"\s*(?:$|[.,;:!?)]|\b(?:in|at|must|should|appears?|is|are|occurs?|anywhere|somewhere|more"
        r"|less|"
        r"exactly|no|not|can|cannot|to|within|throughout|while|and|but|a|once|twice|has|turns?|"
        r"for)\b)",
        rest,
        re.IGNORECASE,
    )
    return bool(announced and closed) and cue.group().split()[0].lower() not in ("name", "names")


def _negated(sentence: Sentence, start: int, end: int) -> bool:
    """Return whether the phrase is negated: before it in its clause, or right after it.

    Such as "should not appear".
    """
    clause = re.split(
        r"[;.!?]|\bbut\b(?! do| never| without| avoid)|,\s*(?:and )?(?=(?:use|include|make|write"
        r"|add)\b)",
        sentence.before(start),
    )[-1]
    clause = _FORGET.sub(" ", clause)  # "do not forget to" asks for the word
    if _NEGATION.search(clause[-80:]):  # farther away it is about something else
        return True
    tail = re.split(r"[;.!?,]|\b(?:and|but)\b", sentence.masked[end : end + 70])[0]
    return bool(_BANNED.search(tail))
