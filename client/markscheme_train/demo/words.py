"""Tell words from non-words: a rising share of non-words would show reward hacking."""

import re
from collections.abc import Iterable
from typing import Any

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without numbers and punctuation."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def known_words(tokenizer: Any, texts: Iterable[str]) -> frozenset[str]:
    """Return words that are tokens of their own, and those of `texts`.

    A tokenizer learns such tokens from a large corpus, so rare real words count as non-words now
    and then: use the share to compare, not for its own value.
    """
    common = {
        token[1:].lower()
        for token in tokenizer.get_vocab()
        if token.startswith("Ġ") and token[1:].isalpha()
    }
    return frozenset(common.union(*(words_of(text) for text in texts)))


def non_word_share(texts: Iterable[str], known: frozenset[str]) -> float:
    """Return the share of words in `texts` that are unknown; a possessive counts by its parts."""
    words = [word for text in texts for word in words_of(text)]
    unknown = [
        word
        for word in words
        if word not in known and not all(part in known for part in _parts(word))
    ]
    return len(unknown) / len(words) if words else 0.0


def _parts(word: str) -> list[str]:
    return [part for part in word.split("'") if len(part) > 2] or [word]
