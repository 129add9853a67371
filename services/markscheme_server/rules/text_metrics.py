"""Count words, sentences, bullets and so on in a text. Pure functions, linear in the text.

The counts agree with those of IFEval's published verifier where its rules are stated. Its sentence
and token counts come from trained models, which are approximated here by rules. No pattern has
nested or overlapping repetition, so that a hostile text cannot make it backtrack.
"""

import re

READ_WORDS = 5_000
"""Words of a text that the measures of repetition and echo read."""

_WORD = re.compile(r"\w+")
_SINGLE_HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*[^\n*]*\*\*")
_TOKEN_BREAK = re.compile(
    r"[\s,;:?!()\[\]{}<>\"“”«»‘`@#$%&]+|\.{2,}|--+|\.(?=['’]?(?:\s|$))|(?=['’])"
)
_CLOSERS = "\"'”’)]}*_»"
_ABBREVIATIONS_TEXT = (
    "mr mrs ms dr prof st jr sr vs etc e.g i.e inc ltd co corp dept est fig gen gov hon lt maj no "
    "op rep rev sen sgt "
    "u.s u.k u.n a.m p.m d.c ph.d jan feb mar apr jun jul aug sep sept oct nov dec"
)
_ABBREVIATIONS = frozenset(_ABBREVIATIONS_TEXT.split())


def words(text: str) -> list[str]:
    """Return the runs of letters, digits and underscores."""
    return _WORD.findall(text)


def triples(text_words: list[str]) -> list[tuple[str, str, str]]:
    """Return every three neighbouring words; the caller lower-cases them."""
    return list(zip(text_words, text_words[1:], text_words[2:], strict=False))


def sentences(text: str) -> int:
    """Count sentences.

    A token that ends in ``.``, ``!`` or ``?`` ends one, except for abbreviations and initials.
    """
    tokens = text.split()
    found = 0
    for position, token in enumerate(tokens[:-1]):
        bare = token.rstrip(_CLOSERS)
        if bare.endswith(("!", "?")):
            found += 1
        elif bare.endswith("."):
            found += _period_closes(bare, tokens[position + 1])
    return found + bool(tokens)


def _period_closes(token: str, following: str) -> bool:
    stem = token[:-1].lstrip("\"'“‘([*_").lower()
    starts_upper = following.lstrip("\"'“‘([*_")[:1].isupper()
    if token.endswith("..") or stem.endswith("."):
        return starts_upper  # an ellipsis, or an abbreviation such as "e.g."
    if stem in _ABBREVIATIONS:
        return False
    # An initial such as "J." ends no sentence.
    return not (len(stem) == 1 and stem.isalpha())


def bullets(text: str) -> int:
    """Count lines that begin with ``-``, or with one ``*`` and something after it."""
    found = 0
    for line in text.split("\n"):
        start = line.lstrip()
        found += start.startswith("-") or (len(start) > 1 and start[0] == "*" and start[1] != "*")
    return found


def highlights(text: str) -> int:
    """Count ``*passages*`` and ``**passages**`` that are not empty and on one line."""
    single = sum(1 for m in _SINGLE_HIGHLIGHT.findall(text) if m.strip("*").strip())
    return single + sum(1 for m in _DOUBLE_HIGHLIGHT.findall(text) if m[2:-2].strip())


def placeholders(text: str) -> int:
    """Count ``[square brackets]`` that open and close on one line."""
    found = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0:
            end = line.find("]", start)
            if end < 0:
                break
            found += 1
            start = line.find("[", end)
    return found


def capital_words(text: str) -> int:
    """Count words without a lower-case letter, also ``I`` and ``A``; a hyphenated word is one."""
    return sum(1 for token in _TOKEN_BREAK.split(text) if token and token.isupper())


def commas(text: str) -> int:
    """Count commas."""
    return text.count(",")


def paragraphs(text: str) -> int:
    """Count blocks of text with an empty line between them."""
    return sum(1 for block in text.split("\n\n") if block.strip())


def starred_parts(text: str) -> int | None:
    """Count parts divided by ``***``; ``None`` when an inner part is empty."""
    return _parts(text, "***")


def responses(text: str) -> int | None:
    """Count answers divided by ``******``; ``None`` when an inner one is empty or two are equal."""
    found = _parts(text, "******")
    answers = [part.strip() for part in text.split("******") if part.strip()]
    return found if len(set(answers)) == len(answers) else None


def _parts(text: str, divider: str) -> int | None:
    parts = text.split(divider)
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return sum(1 for part in parts if part.strip())


def repeated_share(text: str) -> float:
    r"""Return the share of words in repetitions of an earlier word triple; 0 below three words.

    Words are split at white space here: ``\w`` breaks Indic words apart and then finds repetition
    in any text. Reads the first 5,000 words.
    """
    text_words = text.lower().split()[:READ_WORDS]
    seen: set[tuple[str, str, str]] = set()
    repeated = [False] * len(text_words)
    for start, triple in enumerate(triples(text_words)):
        if triple in seen:
            repeated[start : start + 3] = [True, True, True]
        seen.add(triple)
    return sum(repeated) / len(repeated) if repeated else 0.0


def upper_share(text: str) -> float | None:
    """Return the upper-case share of the letters that have a case; ``None`` without any."""
    upper = sum(map(str.isupper, text))
    cased = upper + sum(map(str.islower, text))
    return upper / cased if cased else None
