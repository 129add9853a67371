"""Sanitise the text that a judge is shown, and find quotations in it.

A rollout may hold invisible characters, and tags that a server takes for turns of the conversation.
The copy shows invisible characters as U+FFFD and breaks the tags with a space. What letters and
emoji need stays: joiners in Persian and Hindi, soft hyphens in words, emoji sequences.
"""

import re
import unicodedata

HIDDEN = "\ufffd"
"""Replaces an invisible character in the copy."""

# Characters that are invisible or change how their neighbours look, except tabs and line ends.
_SUSPECT = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u115f\u1160"
    "\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LINE_ENDS = str.maketrans("\u0085\u2028\u2029", "\n\n\n")
# The flags of England, Scotland and Wales are the only emoji with tag characters.
_TAG_FLAG = re.compile(
    "\U0001f3f4(?:\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063"
    "\U000e0074|\U000e0077\U000e006c\U000e0073))\U000e007f"
)
_ZWNJ, _ZWJ, _ZWSP, _SOFT_HYPHEN, _CGJ = "\u200c", "\u200d", "\u200b", "\u00ad", "\u034f"
_RTL_MARKS = "\u200e\u200f\u061c"
_EMOJI_STYLE = "\ufe0e\ufe0f"

# Tags with which chat templates begin and end turns, call tools and delimit thinking. The spellings
# are exact: servers match them exactly.
_TEMPLATE_TAG = re.compile(
    r"<\|[^\s<>|]{1,64}\|?>"  # ChatML, Llama 3 and 4, gpt-oss, Phi, Qwen, GLM, Command, Gemma 4
    r"|<[A-Za-z_]{1,32}\|>"
    r"|<\uff5c[^<>\uff5c]{1,64}\uff5c>"  # DeepSeek
    r"|<</?SYS>>|\[/?INST\]|</?s>"  # Llama 2, Mistral
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|MODEL_SETTINGS"
    r"|THINK|ARGS|CALL_ID|PREFIX|MIDDLE|SUFFIX|IMG|IMG_BREAK|IMG_END)\]"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|pad|unk|sop|eop|think|thinking|thought|reasoning"
    r"|seed:think|seed:bos|seed:eos|tool_call|tool_response|start_of_image|end_of_image|unused\d{1,3}|reserved_\d{1,4}|extra_id_\d{1,3})>"
    r"|\[g?MASK\]|\u25c1/?think\u25b7|\]~!?b[\[\]]|\[UNUSED_TOKEN_\d{1,4}\]|\[e~\["
    r"|assistantfinal"  # gpt-oss, from a server that drops the special tokens around it
)


def sanitise(text: str) -> str:
    """Return the copy of ``text`` to show, in linear time."""
    text = text.translate(_LINE_ENDS) if not text.isascii() else text
    if _SUSPECT.search(text):
        text = _SUSPECT.sub(_show, text)
    return _TEMPLATE_TAG.sub(lambda tag: f"{tag.group()[0]} {tag.group()[1:]}", text)


def _show(match: re.Match[str]) -> str:
    text, at, char = match.string, match.start(), match.group()
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    return char if _needed(char, before, after, text, at) else HIDDEN


def _needed(char: str, before: str, after: str, text: str, at: int) -> bool:
    """Return whether the characters beside this one need it to display correctly."""
    if char == _SOFT_HYPHEN:
        return before.isalpha() and after.isalpha()
    if char == _ZWJ:
        styled = before != "" and before in _EMOJI_STYLE
        return _is_joining(before) or (
            _is_emoji(text[at - 2 : at - 1] if styled else before) and _is_emoji(after)
        )
    if char == _ZWNJ:
        return _is_joining(before) and _is_joining(after)
    if char == _ZWSP:
        return _breaks_without_spaces(before) and _breaks_without_spaces(after)
    if char in _RTL_MARKS:
        return _is_right_to_left(before) or _is_right_to_left(after)
    if char in _EMOJI_STYLE:
        return _takes_emoji_style(before, after)
    if char == _CGJ:
        return unicodedata.combining(before or "x") > 0 and unicodedata.combining(after or "x") > 0
    # Variation selectors: of ideographs, mathematical symbols and Myanmar letters.
    if "\ufe00" <= char <= "\ufe0d":
        return (
            _is_ideograph(before)
            or unicodedata.category(before or " ") == "Sm"
            or _in(before, 0x1000, 0x109F)
        )
    # Variation selectors of ideographs only.
    if "\U000e0100" <= char <= "\U000e01ef":
        return _is_ideograph(before)
    # Mongolian variation selectors and the vowel separator.
    if "\u180b" <= char <= "\u180f":
        return _in(before, 0x1820, 0x18AA)
    # Tag characters can hide a whole text; only three flags need them.
    if "\U000e0020" <= char <= "\U000e007f":
        flag = text.rfind("\U0001f3f4", max(0, at - 6), at)
        found = _TAG_FLAG.match(text, flag) if flag != -1 else None
        return found is not None and at < found.end()
    # The blank Braille pattern is the space of a Braille text.
    if char == "\u2800":
        return _in(before, 0x2801, 0x28FF) or _in(after, 0x2801, 0x28FF)
    return False


def _in(char: str, first: int, last: int) -> bool:
    return char != "" and first <= ord(char) <= last


def _is_joining(char: str) -> bool:
    """Return whether it is a letter or mark of a script that joins letters or forms conjuncts.

    Such as Arabic, Syriac, Mongolian and the Indic scripts.
    """
    return (
        _in(char, 0x0600, 0x08FF)
        or _in(char, 0x0900, 0x0DFF)
        or _in(char, 0x1000, 0x109F)
        or _in(char, 0x1780, 0x18AF)
        or _in(char, 0xFB50, 0xFDFF)
        or _in(char, 0xFE70, 0xFEFC)
        or _in(char, 0xA840, 0xAADF)
        or _in(char, 0x11000, 0x11FFF)
    ) and unicodedata.category(char)[0] in "LM"


def _breaks_without_spaces(char: str) -> bool:
    """Return whether it is a letter or mark of Thai, Lao, Myanmar, Khmer or Tibetan."""
    return _in(char, 0x0E00, 0x0FFF) or _in(char, 0x1000, 0x109F) or _in(char, 0x1780, 0x17FF)


def _is_right_to_left(char: str) -> bool:
    return char != "" and unicodedata.bidirectional(char) in ("R", "AL", "AN")


def _is_ideograph(char: str) -> bool:
    return _in(char, 0x3400, 0x9FFF) or _in(char, 0xF900, 0xFAFF) or _in(char, 0x20000, 0x3FFFF)


def _is_emoji(char: str) -> bool:
    """Return whether it is a symbol or a skin tone."""
    return char != "" and (
        unicodedata.category(char) in ("So", "Sk") or char in "\u2139\u27a1\u2194\u2195"
    )


def _takes_emoji_style(before: str, after: str) -> bool:
    if before == "":
        return False
    # A keycap: the digit, the style and U+20E3.
    if before in "0123456789#*":
        return after == "\u20e3"
    return (
        unicodedata.category(before) in ("So", "Sm", "Sk")
        or before in "\u203c\u2049\u2139\u3030\u303d"
    )


# Evidence is looked up in the shown copy; both are folded first.
_SPACE = re.compile(r"\s+")
_QUOTES = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201a": "'",
        "\u201b": "'",
        "\u2032": "'",
        "`": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u201e": '"',
        "\u201f": '"',
        "\u2033": '"',
        "\u00ab": '"',
        "\u00bb": '"',
        "\u300c": '"',
        "\u300d": '"',
        "\u2010": "-",
        "\u2011": "-",
        "\u2012": "-",
        "\u2013": "-",
        "\u2014": "-",
        "\u2212": "-",
        HIDDEN: None,
    }
)
_ELLIPSIS = re.compile(r"\s*(?:\[\s*(?:\.{3,}|\u2026)\s*\]|\.{3,}|\u2026)\s*")
_MARKDOWN = str.maketrans("", "", "*_")


def quotes(quotation: str, shown: str) -> bool:
    """Return whether ``quotation`` occurs in the text that was shown.

    White space, styles of quotation marks and dashes, case, emphasis and invisible characters are
    ignored. Parts around an ellipsis must occur in order. A single letter is no quotation, unless
    it is the whole text.
    """
    folded = _fold(shown)
    whole = _fold(quotation).strip("'\" ")
    if not whole:
        return False
    if whole == folded.strip("'\" "):
        return True
    if _is_specific(whole) and whole in folded:
        return True
    parts = [part for piece in _ELLIPSIS.split(quotation) if (part := _fold(piece).strip("'\" "))]
    at = 0
    for part in parts:
        found = folded.find(part, at) if _is_specific(part) else -1
        if found == -1:
            return False
        at = found + len(part)
    return len(parts) > 1


def _is_specific(part: str) -> bool:
    """Return whether it has two letters, a digit or a symbol: a single letter is in every text."""
    letters = sum(c.isalpha() for c in part)
    return letters > 1 or any(c.isdigit() or unicodedata.category(c)[0] == "S" for c in part)


def _fold(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(_LINE_ENDS))
    text = _SUSPECT.sub("", text).translate(_QUOTES).translate(_MARKDOWN)
    return _SPACE.sub(" ", text).casefold().strip()
