"""The files of this very fleetfit as it is installed, or lies in a checkout."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import fleetfit

_SUFFIXES: Final = frozenset(
    {".py", ".pyi", ".proto", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".mako", ".ini", ".typed"}
    | {".onnx", ".ncnn"}
)


def package_files() -> dict[str, bytes]:
    """Every file that belongs to the package, by its path (`fleetfit/core/package.py`)."""
    root = Path(fleetfit.__file__).parent
    found = {}
    # In a checkout the components are links.
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if name.isidentifier() and name != "__pycache__")
        for name in names:
            path = Path(folder) / name
            if path.suffix in _SUFFIXES or name == "py.typed":
                found[(Path("fleetfit") / path.relative_to(root)).as_posix()] = path.read_bytes()
    return found


def code_digest() -> str:
    """The SHA-256 of all of them with their paths: the same in a checkout, in its wheel and where that is installed."""
    digest = hashlib.sha256()
    for name, content in sorted(package_files().items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()
