"""What names this very device or its owner is taken out before anything is signed: docs/selfproof.md has the list."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2

_HARDWARE_ADDRESS: Final = re.compile(r"\b[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\b")
# Shorter names (`pi`) stand in words that mean something else.
_LEAST_LETTERS: Final = 4


def _names() -> dict[str, str]:
    """What to replace, the longest first, so that a home folder goes before the name in it."""
    # Not `Path.home()` alone: it follows HOME, which sudo may keep or not.
    homes = {str(Path.home()), os.path.expanduser(f"~{os.environ.get('SUDO_USER', '')}")}
    found = {sys.prefix: "ENVIRONMENT", socket.gethostname(): "HOST"}
    found |= dict.fromkeys((home for home in homes if home not in ("/", "~", "/root")), "HOME")
    users = {os.environ.get("SUDO_USER", ""), os.environ.get("USER", "")}
    try:
        users.add(getpass.getuser())
    except (KeyError, OSError):
        pass  # This user has no entry in the list of users.
    found |= dict.fromkeys(users - {"root"}, "USER")
    return {name: instead for name, instead in found.items() if len(name) >= _LEAST_LETTERS}


@dataclass(frozen=True)
class Privacy:
    """Takes names out of text and messages."""

    names: dict[str, str] = field(default_factory=_names)

    def text(self, text: str) -> str:
        """The text without folders, users, hosts and hardware addresses of this device."""
        for name in sorted(self.names, key=len, reverse=True):
            text = text.replace(name, self.names[name])
        return _HARDWARE_ADDRESS.sub("00:00:00:00:00:00", text)

    def snapshot(self, snapshot: snapshot_pb2.DeviceSnapshot) -> snapshot_pb2.DeviceSnapshot:
        """A copy that tells what kind of device this is, and not which one."""
        kept = snapshot_pb2.DeviceSnapshot()
        kept.CopyFrom(snapshot)
        kept.ClearField("host_name")
        kept.ClearField("host_digest")
        kept.ClearField("disk_free_bytes")
        kept.product = self.text(kept.product)
        kept.os.kernel = self.text(kept.os.kernel)
        for runtime in kept.runtimes:
            runtime.reason = self.text(runtime.reason)
        return kept

    def result(self, result: measurement_pb2.MeasurementResult) -> measurement_pb2.MeasurementResult:
        """A copy with all samples and readings, and nothing that names this host or this boot."""
        kept = measurement_pb2.MeasurementResult()
        kept.CopyFrom(result)
        kept.ClearField("boot_id")
        kept.ClearField("host_digest")
        for name in ("boot_id", "application"):
            kept.condition.pop(name, None)
        kept.message = self.text(kept.message)
        kept.disturbance = self.text(kept.disturbance)
        kept.notes[:] = [self.text(note) for note in kept.notes]
        return kept
