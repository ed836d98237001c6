"""The installer that a device fetches: `on_device.py` with the digests of all wheels that it may fetch after it.

Whoever checks the installer's digest has checked everything, so both may travel in the open.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

from fleetfit.core.digests import sha256_bytes, sha256_file
from fleetfit.core.errors import NotFound
from fleetfit.server.install.own_wheel import own_wheel
from fleetfit.server.install.shelf import MACHINES, PYTHONS, RUNTIMES, Shelf, Target, Wheel

ON_DEVICE: Final = Path(__file__).with_name("on_device.py")
PLACE: Final = "MANIFEST = {}  # type: Dict[str, Any]"


@dataclass(frozen=True)
class Installer:
    """The installer's bytes, their SHA-256, the wheels that it names (name to path), and the targets it serves."""

    content: bytes
    sha256: str
    wheels: dict[str, Path]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Offered:
    """Installers, and the address that devices are told to fetch them from (`:PORT` where the host is open)."""

    installers: Installers
    address: str


@dataclass(frozen=True)
class Stock:
    """What the shelf has for one target: the agent's wheels, each runtime's, and what is lacking, first of all for the agent."""

    target: Target
    agent: tuple[Wheel, ...]
    runtimes: dict[str, tuple[Wheel, ...]]
    lacking: dict[str, tuple[str, ...]]

    @property
    def complete(self) -> bool:
        """Whether an agent can be installed there."""
        return "agent" not in self.lacking


def take_stock(shelf: Shelf, target: Target) -> Stock:
    """See what an agent would get on a target. The shelf has our own wheel."""
    # Without pip on the device: the one that lies here installs.
    agent = shelf.needed(target, [Requirement("fleetfit"), Requirement("pip")])
    runtimes, lacking = {}, {} if agent.complete else {"agent": agent.lacking}
    for name in RUNTIMES if agent.complete else ():
        needed = shelf.needed(target, [Requirement(f"fleetfit[{name}]")])
        if needed.complete:
            runtimes[name] = tuple(wheel for wheel in needed.wheels if wheel not in agent.wheels)
        else:
            lacking[name] = needed.lacking
    return Stock(target, agent.wheels, runtimes, lacking)


def place_own_wheel(shelf: Shelf) -> None:
    """Put the wheel of this fleetfit on the shelf, in place of any other version's."""
    name, content = own_wheel()
    shelf.folder.mkdir(parents=True, exist_ok=True)
    path = shelf.folder / name
    if not path.exists() or sha256_file(path) != sha256_bytes(content):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)
    for other in shelf.folder.glob("fleetfit-*.whl"):
        if other != path:
            other.unlink()


def stock(shelf: Shelf) -> list[Stock]:
    """What the shelf has for each target that it has an agent for."""
    everything = [take_stock(shelf, Target(python, machine)) for machine in MACHINES for python in PYTHONS]
    return [one for one in everything if one.complete]


class Installers:
    """The installer for what lies on the shelf now; made anew when that changes. Only for one event loop."""

    def __init__(self, folder: Path) -> None:
        self._shelf = Shelf(folder)
        self._own_placed = False
        self._made: tuple[tuple[tuple[str, int, int], ...], Installer | None] = ((), None)
        self._digests: dict[tuple[str, int, int], str] = {}
        self._lock = asyncio.Lock()

    async def current(self) -> Installer | None:
        """The installer; None where the shelf has not all that an agent needs, for any kind of device."""
        async with self._lock:
            return await asyncio.to_thread(self._current)

    async def wheel(self, name: str) -> Path:
        """A wheel that the installer names. Raises NotFound."""
        made = self._made[1] or await self.current()
        if made is None or name not in made.wheels:
            raise NotFound("there is no such wheel; make a new line with `fleetfit devices enroll`")
        return made.wheels[name]

    def _current(self) -> Installer | None:
        if not self._shelf.listing():
            return None
        if not self._own_placed:
            place_own_wheel(self._shelf)
            self._own_placed = True
        listing = self._shelf.listing()
        if self._made[0] != listing:
            self._made = listing, self._make(listing)
        return self._made[1]

    def _make(self, listing: tuple[tuple[str, int, int], ...]) -> Installer | None:
        targets: dict[str, Any] = {}
        used: dict[str, Wheel] = {}
        for one in stock(self._shelf):
            targets[str(one.target)] = {
                "agent": [wheel.path.name for wheel in one.agent],
                "runtimes": {name: [w.path.name for w in wheels] for name, wheels in one.runtimes.items()},
            }
            for wheel in (*one.agent, *(w for wheels in one.runtimes.values() for w in wheels)):
                used[wheel.path.name] = wheel
        if not targets:
            return None
        self._digests = {
            key: self._digests.get(key) or sha256_file(self._shelf.folder / key[0]) for key in listing if key[0] in used
        }
        digests = {key[0]: (key[1], digest) for key, digest in self._digests.items()}
        files = {name: [*digests[name], wheel.unpacked_bytes] for name, wheel in sorted(used.items())}
        # Read back from JSON: every value is plain, so its repr is a Python literal.
        manifest = json.loads(json.dumps({"targets": targets, "files": files}, sort_keys=True))
        source = ON_DEVICE.read_text()
        content = source.replace(PLACE, f"MANIFEST = {manifest!r}  # type: Dict[str, Any]", 1).encode()
        paths = {name: wheel.path for name, wheel in used.items()}
        return Installer(content, sha256_bytes(content), paths, tuple(targets))
