"""Small wheels that hold nothing, for questions about which wheel goes where."""

from __future__ import annotations

import zipfile
from pathlib import Path


def wheel(folder: Path, file_name: str, *requires: str, python_requires: str = "") -> Path:
    """An empty wheel of this name with these requirements."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    name, version, python_tag, abi, platform = file_name.removesuffix(".whl").split("-")
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Python: {python_requires}"] if python_requires else []
    lines += [f"Requires-Dist: {text}" for text in requires]
    with zipfile.ZipFile(path, "w") as archive:
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n\n")
        archive.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {python_tag}-{abi}-{platform}\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path
