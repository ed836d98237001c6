"""One exclusive lock per host: whoever measures or computes holds it, so that nothing disturbs a sample.

The kernel frees the lock when its holder dies. Windows are recorded on the monotonic clock, which all processes of a
host share, so that "nothing overlapped" can be proven afterwards.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FILE_NAME = "fleetfit-host.lock"
_POLL_S = 0.05


def lock_path() -> Path:
    """The lock file of this host: `FLEETFIT_HOST_LOCK`, else in /run/lock if writable, else in the temporary folder."""
    override = os.environ.get("FLEETFIT_HOST_LOCK")
    if override:
        return Path(override)
    shared = Path("/run/lock")
    folder = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    return folder / _FILE_NAME


@dataclass(frozen=True)
class Held:
    """When the lock was taken, in nanoseconds of the monotonic clock, and how long it was waited for."""

    begin_monotonic_ns: int
    waited_ns: int


def _open(path: Path) -> int:
    # Without O_CREAT first: in a sticky folder the kernel refuses it on another user's file (fs.protected_regular).
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o666:
            os.fchmod(descriptor, 0o666)
    return descriptor


@contextmanager
def host_lock(limit_s: float | None = None) -> Iterator[Held]:
    """Hold this host's lock. Raises TimeoutError when it was not free within `limit_s` seconds (None: no limit)."""
    descriptor = _open(lock_path())
    try:
        asked = time.monotonic_ns()
        if limit_s is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic_ns() - asked > limit_s * 1e9:
                        raise TimeoutError(f"the host lock {lock_path()} was not free within {limit_s:g} s") from None
                    time.sleep(_POLL_S)
        begin = time.monotonic_ns()
        yield Held(begin, begin - asked)
    finally:
        os.close(descriptor)
