"""Saving what the probes read on a board, so that tests can read it without the board.

The files are those that a snapshot and the readings really ask for, at their places below a folder, as `Tree` reads them there.
Serial numbers, machine ids, hardware addresses and the host's name are replaced.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import fleetfit
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.readings import Readings
from fleetfit.agent.probe.snapshot import take_snapshot
from fleetfit.core.errors import InvalidInput
from fleetfit.proto.v1 import snapshot_pb2

_LARGEST_BYTES: Final = 1 << 20
_IDS: Final = re.compile(r"/(machine-id|boot_id|serial-number|[a-z]+_(serial|uuid|asset_tag))$")
_SECRETS: Final = (
    (re.compile(rb"(?m)^(Serial[ \t]*:).*$"), rb"\1 0000000000000000"),
    (re.compile(rb"\b[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\b"), rb"00:00:00:00:00:00"),
)


class _Noting(Tree):
    """Keeps the first content of everything that is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.folders: set[str] = set()

    def text(self, path: str) -> str | None:
        self._note(path)
        return super().text(path)

    def link(self, path: str) -> str | None:
        target = super().link(path)
        if target is not None:
            self.links.setdefault(path, target)
        return target

    def paths(self, pattern: str) -> list[str]:
        found = super().paths(pattern)
        for path in found:
            if (self.root / path.lstrip("/")).is_dir():
                self.folders.add(path)
            else:
                self._note(path)
        return found

    def _note(self, path: str) -> None:
        if path not in self.files:
            with contextlib.suppress(OSError), (self.root / path.lstrip("/")).open("rb") as file:
                self.files[path] = file.read(_LARGEST_BYTES)


def record(folder: Path, root: Path = Path("/"), runtimes: Sequence[snapshot_pb2.Runtime] = ()) -> int:
    """Record the board whose files lie below `root` into `folder`; how many files there are. `runtimes` are those that it has.

    Raises InvalidInput where the folder holds something already, OSError where it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; name a new folder for the record", field="record")
    tree = _Noting(root)
    snapshot = take_snapshot(tree, runtimes=runtimes)
    readings = Readings(tree)
    readings.take()
    host = socket.gethostname()
    for path in tree.folders:
        _place(folder, path).mkdir(parents=True, exist_ok=True)
    for path, content in tree.files.items():
        file = _place(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(without_secrets(path, content, host))
    facts = {
        "recorded": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "fleetfit": fleetfit.__version__,
        "python": platform.python_version(),
        "kernel": snapshot.os.kernel,
        "libc": snapshot.os.libc,
        "runtimes": {one.name: one.version for one in snapshot.runtimes if one.available},
        # What a program is, not what a board is: kept to be read by people.
        "links": tree.links,
    }
    own = folder / "fleetfit"
    own.mkdir(parents=True, exist_ok=True)
    (own / "machine").write_text(snapshot.machine + "\n")
    (own / "recorded.json").write_text(json.dumps(facts, indent=2) + "\n")
    return len(tree.files)


def without_secrets(path: str, content: bytes, host: str) -> bytes:
    """The content with what names this very board or host replaced by what has the same form."""
    if _IDS.search(path):
        return re.sub(rb"[0-9A-Za-z]", b"0", content)
    for pattern, instead in _SECRETS:
        content = pattern.sub(instead, content)
    # A name such as `pi` stands in words that mean something else.
    return content.replace(host.encode(), b"host") if len(host) > 3 else content


def _place(folder: Path, path: str) -> Path:
    return folder / path.lstrip("/")
