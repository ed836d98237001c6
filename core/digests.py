"""SHA-256 names for content, and the one canonical form that keys are made from."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

_HEX = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


def sha256_bytes(content: bytes) -> str:
    """Lower-case hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Lower-case hexadecimal SHA-256 of the file's content, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_sha256(text: str) -> bool:
    """Whether `text` is a digest in our form. Checked before a digest becomes part of a path."""
    return _HEX.fullmatch(text) is not None


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN.

    Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def key_of(value: Any) -> str:
    """Digest of a JSON value's canonical form: variant and build keys."""
    return sha256_bytes(canonical_json(value))


def short(digest: str) -> str:
    """The form of a digest that people read: its first ten characters."""
    return digest[:10]
