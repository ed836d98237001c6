"""The shelf: a folder of wheels, and which of them an agent needs on a given Python and architecture.

    STATE/wheels/*.whl

The folder is all there is: whatever lies in it counts, however it came there. What fits is found by the wheels' own names
and metadata, as pip does it: https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import HeaderParser
from functools import cache
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from fleetfit.core.errors import InvalidInput

PYTHONS: Final = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))
MACHINES: Final = ("aarch64", "x86_64")
# Extras of ours that bring a runtime which runs on a device without more.
RUNTIMES: Final = ("onnxruntime", "ncnn", "openvino")
# The C library of Ubuntu 22.04, the oldest system that profiles expect an agent on (Debian 12 has 2.36).
_GLIBC: Final = 35
_OLDEST_GLIBC: Final = {"aarch64": 17, "x86_64": 5}


@dataclass(frozen=True)
class Target:
    """A kind of device as far as wheels know it."""

    python: tuple[int, int]
    machine: str

    def __str__(self) -> str:
        return f"cp{self.python[0]}{self.python[1]}-{self.machine}"

    @property
    def platforms(self) -> list[str]:
        """Platform tags, best first."""
        older = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        found = []
        for minor in range(_GLIBC, _OLDEST_GLIBC[self.machine] - 1, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in older:
                found.append(f"{older[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    @property
    def environment(self) -> dict[str, str]:
        """What markers in requirements are judged by."""
        version = f"{self.python[0]}.{self.python[1]}"
        return {
            "python_version": version,
            "python_full_version": f"{version}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{version}.0",
            "platform_python_implementation": "CPython",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "platform_release": "",
            "platform_version": "",
            "sys_platform": "linux",
            "os_name": "posix",
        }


@dataclass(frozen=True)
class Wheel:
    """One wheel: what its name and its metadata say."""

    path: Path
    name: str
    version: Version
    tags: frozenset[Tag]
    requires: tuple[Requirement, ...] = field(repr=False)
    requires_python: SpecifierSet
    unpacked_bytes: int

    def fits(self, target: Target) -> bool:
        """Whether it can be installed there."""
        python = f"{target.python[0]}.{target.python[1]}"
        return self.requires_python.contains(python) and not self.tags.isdisjoint(_ranks(target))


@dataclass(frozen=True)
class Needed:
    """Wheels that together can be installed, and the requirements that no wheel here meets."""

    wheels: tuple[Wheel, ...]
    lacking: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is lacking."""
        return not self.lacking


def read_wheel(path: Path) -> Wheel:
    """Read a wheel. Raises InvalidInput where it is none."""
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            (inside,) = (n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
            headers = HeaderParser().parsestr(archive.read(inside).decode(errors="replace"))
            unpacked = sum(entry.file_size for entry in archive.infolist())
        requires = tuple(Requirement(text) for text in headers.get_all("Requires-Dist") or ())
        requires_python = SpecifierSet(headers.get("Requires-Python") or "")
    except (
        InvalidWheelFilename,
        InvalidRequirement,
        InvalidSpecifier,
        zipfile.BadZipFile,
        ValueError,
        OSError,
    ) as error:
        raise InvalidInput(
            f"{path} is not a wheel that can be read ({error}); fetch it again", field="wheel"
        ) from error
    return Wheel(path, name, version, tags, requires, requires_python, unpacked)


class Shelf:
    """The wheels of a folder, which need not be there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[tuple[str, int, int], Wheel] = {}

    def listing(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and time of every wheel: another listing is another shelf."""
        if not self.folder.is_dir():
            return ()
        paths = sorted(self.folder.glob("*.whl"))
        return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)

    def wheels(self) -> list[Wheel]:
        """What lies there, without files that are no wheels."""
        listing = self.listing()
        self._read = {key: wheel for key, wheel in self._read.items() if key in listing}
        for key in listing:
            if key not in self._read:
                try:
                    self._read[key] = read_wheel(self.folder / key[0])
                except InvalidInput:
                    continue
        return list(self._read.values())

    def needed(self, target: Target, requirements: Iterable[Requirement]) -> Needed:
        """The newest wheels that meet the requirements on a target, with all that these require in turn."""
        fitting = [wheel for wheel in self.wheels() if wheel.fits(target)]
        ranks = _ranks(target)
        fitting.sort(key=lambda w: (w.version, max(ranks[tag] for tag in w.tags if tag in ranks)), reverse=True)
        by_name: dict[str, list[Wheel]] = {}
        for wheel in fitting:
            by_name.setdefault(wheel.name, []).append(wheel)
        return _closure(by_name, list(requirements), target.environment)


@cache
def _ranks(target: Target) -> Mapping[Tag, int]:
    """Every tag that may be installed there; the better one has the larger rank."""
    name = f"cp{target.python[0]}{target.python[1]}"
    tags = [
        *cpython_tags(target.python, [name], target.platforms),
        *compatible_tags(target.python, name, target.platforms),
    ]
    return {tag: -place for place, tag in reversed(list(enumerate(tags)))}


def _closure(
    by_name: Mapping[str, list[Wheel]], requirements: list[Requirement], environment: Mapping[str, str]
) -> Needed:
    """Walk from the requirements to all they need, again until what later ones ask of earlier choices is met too."""
    asked: dict[str, SpecifierSet] = {}
    while True:
        before = dict(asked)
        chosen: dict[str, Wheel] = {}
        lacking: dict[str, None] = {}
        seen: set[tuple[str, str]] = set()
        queue = list(requirements)
        while queue:
            one = queue.pop()
            name = canonicalize_name(one.name)
            asked[name] = asked.get(name, SpecifierSet()) & one.specifier
            wheel = next((w for w in by_name.get(name, ()) if asked[name].contains(w.version, prereleases=True)), None)
            if wheel is None:
                lacking[f"{name}{asked[name]}"] = None
                continue
            chosen[name] = wheel
            for extra in ("", *sorted(one.extras)):
                if (name, extra) not in seen:
                    seen.add((name, extra))
                    queue += _required(wheel, extra, environment)
        if asked == before:
            return Needed(tuple(chosen[name] for name in sorted(chosen)), tuple(sorted(lacking)))


def _required(wheel: Wheel, extra: str, environment: Mapping[str, str]) -> Iterator[Requirement]:
    for requirement in wheel.requires:
        marker = requirement.marker
        # With an extra only what it adds: the rest was asked for without one.
        if marker is None:
            applies = not extra
        else:
            applies = marker.evaluate({**environment, "extra": extra})
        if applies:
            yield requirement
