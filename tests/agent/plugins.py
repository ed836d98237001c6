"""Plug-ins of a third party, installed for the children of a test: folders for PYTHONPATH."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, name: str, source: str, entry_points: Mapping[str, Mapping[str, str]]) -> Path:
    """A site with the module `name`; entry points are `group: {name: attribute of that module}`."""
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir(parents=True)
    (folder / f"{name}.py").write_text(source)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{entry} = {name}:{attribute}" for entry, attribute in entries.items())]
    (facts / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
