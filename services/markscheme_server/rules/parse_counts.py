"""Parse how much of something a prompt asks for: words, sentences, bullets, sections and so on."""

import re
from collections.abc import Iterator

from markscheme_server.rules.constraint import Constraint, in_words
from markscheme_server.rules.numbers import QUANTITY, Bounds, parse_bounds
from markscheme_server.rules.prompt import PromptText, Sentence

_FILLER = r"[\s-]+(?:(?!words?\b|sentences?\b|times?\b)[a-z'-]+\s+){0,2}?"
_CAPITALS = r"(?:all[- ])?(?:caps\b|capitals?\b(?: letters)?|upper-?case)|(?:fully )?capitali[sz]ed"


def _amount(unit: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.¤$€£])(?:{QUANTITY}){_FILLER}(?P<unit>{unit})", re.IGNORECASE)


_WORDS = _amount(r"words?\b(?![^.]{0,24}(?:capital|caps\b|upper))")
_SENTENCES = _amount(r"sentences?\b")
_BULLETS = _amount(r"bullet(?:ed)?[- ]?(?:points?|items?|lists?)?s?\b")
_BULLETED = re.compile(
    rf"bullet(?:ed)?[- ]?(?:points? )?lists? (?:of|with|containing|that has) (?:{QUANTITY})\s", re.I
)
_EXACTLY = re.compile(
    rf"(?<![\w.¤])(?=exactly|precisely)(?:{QUANTITY})\s+(?!paragraphs?|words?|sentences?"
    rf"|sections?)",
    re.IGNORECASE,
)
_PLACEHOLDERS = _amount(r"place-?holders?\b|blanks?\b|(?:fill-in )?fields?\b|slots?\b|gaps?\b")
_HIGHLIGHTED = _amount(
    r"(?:sections?|phrases?|passages?|parts?|words?|sentences?|texts?|pieces?|areas?|highlights?|"
    r"titles?|points?|lines?|spans?|items?|ideas?)\b"
)
_HIGHLIGHTING = re.compile(
    rf"\b(?:highlight|italici[sz]e|emphasi[sz]e)\s+(?:{QUANTITY})\b", re.IGNORECASE
)
_HIGHLIGHT_CUE = re.compile(r"highlight|italic|emphasi[sz]|\bbold|\*[\w][^*\n]*\*", re.IGNORECASE)
_CAPITAL_WORDS = re.compile(
    rf"\bwords?\b[^.]{{0,40}}(?:{_CAPITALS})|(?:{_CAPITALS})[- ](?:\w+ )?words?\b", re.IGNORECASE
)
_ANY_AMOUNT = re.compile(
    rf"(?<![\w.¤])(?:{QUANTITY})(?:[\s-]+(?:[a-z-]+\s+){{0,2}}?(?P<unit>times?|words?)\b|"
    r"(?=[\s.,]|$))",
    re.IGNORECASE,
)
_TIMES = re.compile(
    rf"(?<![\w.¤])(?:{QUANTITY})[\s-]+(?:[a-z-]+\s+){{0,2}}?(?:times?|words?)\b", re.IGNORECASE
)
_PARTS = _amount(
    r"(?:paragraphs?|parts?|sections?|stanzas?|verses?|versions?|pieces?|snippets?|segments?)\b"
)
_PARAGRAPHS = _amount(r"paragraphs?\b")
_DIVIDER = re.compile(r"separat|divid|divis|between|split|delimit|linebreak|a line", re.IGNORECASE)
_THREE_STARS = re.compile(
    r"(?<!\*)\*\*\*(?!\*)|\b(?:3|three) (?:asterisks?|asterix|aster?isk|stars?)\b", re.IGNORECASE
)
_DIVIDER_LINE = re.compile(r"^[ \t]*\*\*\*[ \t]*$", re.MULTILINE)
_SIX_STARS = re.compile(r"(?<!\*)\*{6}(?!\*)|\b(?:6|six) (?:asterisks?|stars?)\b", re.IGNORECASE)
_NUMBERED = re.compile(
    r"(?P<marker>[A-Za-z]{3,20}) ?(?:(?:X|x|N|n|#|i)\b(?![.'])|\[?[Xx1]\]?(?=[\s\"',.:;)]|$))",
    re.ASCII,
)
_ENUMERATED = re.compile(
    r"\b(?P<marker>[A-Z][A-Za-z]{2,20}) 1\b[\s\"',]+(?:and\s+)?[\"']?(?P=marker) (?P<last>[2-9])\b"
)
_HEADED = re.compile(
    r"mark|start|begin|head|title|label|call|name|denot|number|indicat|with|follow|form|such as"
    r"|like",
    re.IGNORECASE,
)
_SECTIONS = _amount(
    r"(?:sections?|chapters?|parts?|paragraphs?|days?|scenes?|acts?|steps?|rounds?|verses?"
    r"|stanzas?|"
    r"segments?|episodes?|lessons?|units?|volumes?)\b"
)
_PLACES = (
    "first 1st one",
    "second 2nd two",
    "third 3rd three",
    "fourth 4th four",
    "fifth 5th five",
    "sixth 6th six",
    "seventh 7th seven",
    "eighth 8th eight",
    "ninth 9th nine",
    "tenth 10th ten",
)
_ORDINALS = {word: position for position, words in enumerate(_PLACES, 1) for word in words.split()}
_NTH_PARAGRAPH = re.compile(
    r"\b(?:(?P<ordinal>first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|final"
    r"|\d{1,2}(?:st|nd|rd|th))"
    r"\s+paragraph|paragraph\s+(?:number\s+)?(?P<number>\d{1,2}|one|two|three|four|five|six|seven"
    r"|eight|nine|ten))\b"
    r"[^.!?]{0,60}?\bwith\s+(?:the\s+)?(?:word\s*)?[\"']?",
    re.IGNORECASE,
)
_STARTS = re.compile(r"\b(?:start|begin|open)", re.IGNORECASE)
_FIRST_WORD = re.compile(r"\w[\w-]*")


def parse_counts(prompt: PromptText) -> Iterator[Constraint]:
    """Yield the constraints on amounts."""
    item_bullets = _bullets_of_items(prompt)
    for sentence in prompt.sentences:
        if sentence.is_instruction:
            yield from _in_sentence(sentence, item_bullets)
    yield from _divided(prompt)
    yield from _sections(prompt)
    yield from _paragraphs(prompt)


def _in_sentence(sentence: Sentence, item_bullets: Bounds | None) -> Iterator[Constraint]:
    capital = _CAPITAL_WORDS.search(sentence.masked)
    if capital:
        yield from _capital_words(sentence)
    else:
        yield from _words(sentence)
    if found := _first(_SENTENCES, sentence):
        yield _count("sentences", found, "sentence", sentence)
    if found := _first(_BULLETS, sentence) or _first(_BULLETED, sentence):
        yield _count("bullets", found, "bullet point", sentence)
    elif item_bullets and re.search(r"\bbullet", sentence.masked, re.IGNORECASE):
        yield _count("bullets", item_bullets, "bullet point", sentence)
    found = _first(_PLACEHOLDERS, sentence)
    # "Blanks" and "fields" are common words: they count only beside placeholders or brackets.
    if found and re.search(r"place-?holder|bracket", sentence.text, re.IGNORECASE):
        # "3 placeholders" means at least 3, as IFEval counts them.
        low = Bounds(found.min, None, "least") if found.kind == "bare" else found
        yield _count(
            "placeholders",
            low,
            "placeholder in square brackets",
            sentence,
            "placeholders in square brackets",
        )
    if (
        _HIGHLIGHT_CUE.search(sentence.text)
        and not capital
        and (
            found := _first(_HIGHLIGHTED, sentence)
            or _first(_HIGHLIGHTING, sentence)
            or _some_highlighted(sentence)
        )
    ):
        # More highlights than asked for are accepted, as in IFEval.
        low = Bounds(found.min, None, "least") if found.kind in ("bare", "exact") else found
        yield _count(
            "highlights",
            low,
            "passage highlighted with *asterisks*",
            sentence,
            "passages highlighted with *asterisks*",
        )


def _bullets_of_items(prompt: PromptText) -> Bounds | None:
    """Return the number of bullets where the prompt counts the items instead.

    Such as "List exactly 10 names … in bullet points".
    """
    if not any(re.search(r"\bbullet", s.masked, re.IGNORECASE) for s in prompt.sentences):
        return None
    if any(_first(_BULLETS, s) or _first(_BULLETED, s) for s in prompt.sentences):
        return None
    amount = next(
        (m for s in prompt.sentences if s.is_instruction and (m := _EXACTLY.search(s.masked))), None
    )
    return parse_bounds(amount) if amount else None


def _first(pattern: re.Pattern[str], sentence: Sentence) -> Bounds | None:
    match = pattern.search(sentence.masked)
    return parse_bounds(match, sentence.masked[match.end() : match.end() + 24]) if match else None


def _count(
    of: str, found: Bounds, one: str, sentence: Sentence, many: str | None = None
) -> Constraint:
    check = {"kind": "count", "of": of, **found.as_arguments()}
    return Constraint(
        check, f"The response has {in_words(found.min, found.max, one, many)}.", sentence.source
    )


def _words(sentence: Sentence) -> Iterator[Constraint]:
    for match in _WORDS.finditer(sentence.masked):
        found = parse_bounds(match, sentence.masked[match.end() : match.end() + 24])
        if found is None or re.match(
            r"\s+(?:per|each|in (?:each|every))\b", sentence.masked[match.end() :]
        ):
            continue
        firm = found.kind not in ("bare", "about")
        if found.kind == "bare":
            # A small bare number, as in "three words", rarely is a length; a large one is "about".
            if not found.min or found.min < 20:
                continue
            # A fifth less to a fifth more.
            found = Bounds(found.min * 4 // 5, -(-found.min * 6 // 5), "about")
        for side, value in found.as_arguments().items():
            amount = (
                in_words(value, None, "word") if side == "min" else in_words(None, value, "word")
            )
            yield Constraint(
                {"kind": f"{side}_words", "value": value},
                f"The response has {amount}.",
                sentence.source,
                firm,
            )


def _some_highlighted(sentence: Sentence) -> Bounds | None:
    some = re.search(
        r"\b(?:highlight|italici[sz]e|emphasi[sz]e) (?:some|a few|key|important|"
        r"the)\b",
        sentence.masked,
        re.I,
    )
    return Bounds(1, None, "least") if some and "*" in sentence.text else None


def _capital_words(sentence: Sentence) -> Iterator[Constraint]:
    match = _TIMES.search(sentence.masked) or _ANY_AMOUNT.search(sentence.masked)
    found = parse_bounds(match, sentence.masked[match.end() : match.end() + 24]) if match else None
    if found and found.kind != "about":
        bounds = Bounds(found.min, None, "least") if found.kind == "bare" else found
        yield _count(
            "capital_words",
            bounds,
            "word in all capital letters",
            sentence,
            "words in all capital letters",
        )
    wants_some = re.search(
        r"\b(?:use|some|include|a few|with)\b[^.]{0,20}\bwords?\b", sentence.masked, re.IGNORECASE
    )
    if wants_some and (found is None or found.min is None):
        yield _count(
            "capital_words", Bounds(1, None, "least"), "word in all capital letters", sentence
        )


def _divided(prompt: PromptText) -> Iterator[Constraint]:
    for pattern, of, divider in (
        (_SIX_STARS, "responses", "******"),
        (_THREE_STARS, "starred_parts", "***"),
    ):
        cues = [s for s in prompt.sentences if pattern.search(s.text)]
        divided = next((s for s in cues if _DIVIDER.search(s.text)), None)
        if divided is None:
            # The asterisks may stand alone, apart from the sentence that asks for a divider.
            near = [s for s in prompt.sentences if _DIVIDER.search(s.masked) and s.is_instruction]
            divided = near[-1] if cues and near else None
        if divided is None and of == "starred_parts" and _DIVIDER_LINE.search(prompt.text):
            divided = cues[0]
        if divided is None:
            continue
        # Six asterisks always divide two answers, as in IFEval's instruction.
        found = Bounds(2, 2, "exact") if of == "responses" else _parts_of(prompt, divided)
        noun = "answer" if of == "responses" else "part"
        amount = in_words(found.min, found.max, noun)
        yield Constraint(
            {"kind": "count", "of": of, **found.as_arguments()},
            f"The response has {amount}, divided by {divider}.",
            divided.source,
        )


def _parts_of(prompt: PromptText, divided: Sentence) -> Bounds:
    """Return the number of parts: stated in this sentence or another one, shown, or else two."""
    for sentence in (divided, *prompt.sentences):
        found = _first(_PARTS, sentence) if sentence.is_instruction else None
        if found and not _HIGHLIGHT_CUE.search(sentence.masked.split("***")[0]):
            return found
    shown = len(_DIVIDER_LINE.findall(prompt.text))
    return Bounds(shown + 1, shown + 1, "shown") if shown else Bounds(2, 2, "inferred")


def _sections(prompt: PromptText) -> Iterator[Constraint]:
    amounts = [found for s in prompt.sentences if (found := _first(_SECTIONS, s)) and found.min]
    for sentence in prompt.sentences:
        if not sentence.is_instruction or not _HEADED.search(sentence.masked):
            continue
        match = next(
            (m for m in _NUMBERED.finditer(sentence.text) if _names_section(m["marker"])), None
        )
        own = _first(_SECTIONS, sentence)
        # The number of sections may stand in another sentence than what they are headed by.
        found = own if own and own.min else next(iter(amounts), None)
        if match and found and found.min:
            yield _sectioned(match["marker"], found.min, sentence)
            return
    for sentence in prompt.sentences:
        named = _ENUMERATED.search(sentence.text)
        if sentence.is_instruction and named:
            yield _sectioned(named["marker"], int(named["last"]), sentence)
            return


def _sectioned(marker: str, least: int, sentence: Sentence) -> Constraint:
    return Constraint(
        {"kind": "sections", "marker": marker, "min": least},
        f"The response has at least {least} sections, each headed “{marker}” and a number.",
        sentence.source,
    )


def _names_section(marker: str) -> bool:
    singular = marker.lower()
    # The pattern of amounts knows the words that sections are called by.
    return bool(_SECTIONS.search(f"2 {singular}")) and not singular.endswith("s")


def _paragraphs(prompt: PromptText) -> Iterator[Constraint]:
    total, said = None, None
    for sentence in prompt.sentences:
        found = _first(_PARAGRAPHS, sentence) if sentence.is_instruction else None
        if found and found.min:
            total, said = found, sentence
            break
    if total is None or said is None or _THREE_STARS.search(prompt.text):
        return  # with three asterisks the paragraphs are parts; see _divided
    for sentence in prompt.sentences:
        nth = _NTH_PARAGRAPH.search(sentence.text) if _STARTS.search(sentence.text) else None
        word = _FIRST_WORD.match(sentence.text, nth.end()) if nth else None
        if nth and word and total.min:
            position = _paragraph_number(nth, total.min)
            if 1 <= position <= total.min:
                check = {
                    "kind": "paragraph_start",
                    "paragraphs": total.min,
                    "paragraph": position,
                    "word": word.group().lower(),
                }
                text = (
                    f"The response has exactly {total.min} paragraphs, and paragraph {position} "
                    f"begins with "
                    f"“{word.group()}”."
                )
                yield Constraint(check, text, sentence.source)
                return  # the check decides the number of paragraphs too
    exact = Bounds(total.min, total.min, "exact") if total.kind == "bare" else total
    yield _count("paragraphs", exact, "paragraph", said)


def _paragraph_number(match: re.Match[str], total: int) -> int:
    said = (match["ordinal"] or match["number"]).lower()
    if said in ("last", "final"):
        return total
    return _ORDINALS[said] if said in _ORDINALS else int(re.sub(r"\D", "", said))
