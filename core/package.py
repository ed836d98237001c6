"""The files of this very fleetfit as it is installed, or lies in a checkout, and which of them a device needs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import fleetfit

_SUFFIXES: Final = frozenset(
    {".py", ".pyi", ".proto", ".yaml", ".yml", ".json", ".html", ".css", ".js", ".mako", ".ini", ".typed"}
    | {".onnx", ".ncnn", ".aten"}
)
# What only tools for developers read.
_NOT_RUN: Final = frozenset({".pyi", ".proto", ".typed"})
# What devices have whole, and what of the rest their commands import (a test follows every import).
_ON_DEVICES: Final = frozenset({"agent", "core", "proto", "runtimes"})
_MORE_ON_DEVICES: Final = frozenset(
    {
        "__init__.py",
        "__main__.py",
        "cli.py",
        "client/__init__.py",
        "client/commands/__init__.py",
        "client/commands/options.py",
        "client/commands/selfproof.py",
        "client/output.py",
        "client/progress.py",
        "client/tables/__init__.py",
        "client/tables/words.py",
    }
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


def device_files() -> dict[str, bytes]:
    """Those that a device needs: to work for a server, and to say what it is."""
    return {name: content for name, content in package_files().items() if _is_for_devices(name)}


def code_digest() -> str:
    """The SHA-256 of what devices need, with the paths: the same in a checkout, in a wheel and where either is installed."""
    digest = hashlib.sha256()
    for name, content in sorted(device_files().items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _is_for_devices(name: str) -> bool:
    inside = name.partition("/")[2]
    if Path(name).suffix in _NOT_RUN:
        return False
    return inside in _MORE_ON_DEVICES or inside.partition("/")[0] in _ON_DEVICES
