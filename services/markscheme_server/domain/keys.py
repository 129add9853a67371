"""The form of API keys, and the hash under which one is stored.

A key is `mk_`, 37 random characters and a checksum of 6. The checksum tells a typing mistake from
a wrong key without asking the database, and lets scanners for leaked secrets recognise a key. The
database holds the HMAC-SHA256 of the key under the deployment's pepper; people know a key by its
prefix.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib

MARKER = "mk_"
RANDOM_LENGTH, CHECKSUM_LENGTH = 37, 6
PREFIX_LENGTH = len(MARKER) + 8
_ALPHABET = string.digits + string.ascii_letters
_FORM = re.compile(rf"{MARKER}[0-9A-Za-z]{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}")


def new_key() -> str:
    """Make a key of 220 random bits."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_LENGTH))
    return MARKER + body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Return whether the text has the form of a key and its checksum is right."""
    if _FORM.fullmatch(key) is None:
        return False
    return _checksum(key[len(MARKER) : -CHECKSUM_LENGTH]) == key[-CHECKSUM_LENGTH:]


def prefix(key: str) -> str:
    """Return what names the key in lists and logs; it is too short to be used."""
    return key[:PREFIX_LENGTH]


def key_hash(key: str, pepper: str) -> str:
    """Return what is stored of the key: 64 hex digits that reveal nothing without the pepper."""
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
