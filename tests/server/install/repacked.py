"""Wheels made again from what is installed here: real ones, for tests that have no network."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_NOT_PACKED = {"INSTALLER", "REQUESTED", "direct_url.json", "RECORD"}


def repack(folder: Path, names: Iterable[str]) -> list[Path]:
    """Wheels of these distributions and of all that they require, but ours."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Distribution] = {}
    queue = [Requirement(name) for name in names]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        one = found.setdefault(name, distribution(name))
        for text in one.requires or ():
            needed = Requirement(text)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and canonicalize_name(needed.name) not in found:
                queue.append(needed)
    return [_wheel(folder, one) for name, one in found.items() if name != "fleetfit"]


def _wheel(folder: Path, one: Distribution) -> Path:
    facts = (one.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag: ").split("-") for line in facts if line.startswith("Tag: ")]
    python, abi, platform = (".".join(sorted({tag[part] for tag in tags})) for part in range(3))
    name = canonicalize_name(one.name).replace("-", "_")
    path = folder / f"{name}-{one.version}-{python}-{abi}-{platform}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        record = ""
        for file in one.files or ():
            inside = not file.is_absolute() and ".." not in file.parts and file.suffix != ".pyc"
            if inside and file.name not in _NOT_PACKED:
                archive.write(str(file.locate()), str(file))
                record += f"{file},,\n"
        info = next(file.parts[0] for file in one.files or () if file.parts[0].endswith(".dist-info"))
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path
