"""Secrets that people copy: random, with a check part, so that a slip of the hand is told from a wrong one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final

_RANDOM_BYTES: Final = 24
_CHECK_BYTES: Final = 6
_RANDOM_CHARS: Final = 32
LENGTH: Final = 40


def new_secret() -> str:
    """192 random bits and 48 bits of checksum, in 40 characters of base64url."""
    random = "-"
    # A dash in front would be taken for an option where the token is typed.
    while random.startswith("-"):
        random = _text(secrets.token_bytes(_RANDOM_BYTES))
    return random + _check(random)


def is_whole(secret: str) -> bool:
    """Whether the check part fits: nothing was lost or changed on the way. Says nothing about who made it."""
    return len(secret) == LENGTH and hmac.compare_digest(
        secret[_RANDOM_CHARS:].encode(), _check(secret[:_RANDOM_CHARS]).encode()
    )


def stored_form(secret: str) -> str:
    """What is kept of a secret: its SHA-256. 192 random bits need no slow hash.

    Rows are looked up by it, so nothing that a caller controls is compared byte by byte with a secret.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def _check(random: str) -> str:
    return _text(hashlib.sha256(b"fleetfit secret " + random.encode()).digest()[:_CHECK_BYTES])


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()
