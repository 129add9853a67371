"""API keys: how they look, and what of them may be kept.

A key is ``mk_``, 37 random characters, and 6 that follow from those: a typing mistake is told from a wrong key without
asking the database, and scanners for leaked secrets can tell a key from noise. What is stored is the HMAC-SHA256 of the
whole under the deployment's pepper; its first characters, the prefix, name it to people.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib

MARK = "mk_"
RANDOM, CHECK, SHOWN = 37, 6, 8
"""Random characters; those that follow from them; those of the random ones that the prefix shows."""
_ALPHABET = string.digits + string.ascii_letters
_SHAPE = re.compile(rf"{MARK}[0-9A-Za-z]{{{RANDOM + CHECK}}}")


def new_key() -> str:
    """A key that nobody has: 220 random bits."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM))
    return MARK + body + _check(body)


def is_well_formed(key: str) -> bool:
    """Whether this can be a key at all."""
    return _SHAPE.fullmatch(key) is not None and _check(key[len(MARK) : -CHECK]) == key[-CHECK:]


def prefix(key: str) -> str:
    """What names the key in lists and logs; too little of it to be used."""
    return key[: len(MARK) + SHOWN]


def digest(key: str, pepper: str) -> str:
    """What is stored of the key: 64 hexadecimal digits that say nothing without the pepper."""
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()


def _check(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECK):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
