"""A server's folder: one server at a time, readable by its user only.

- `server.lock`: held while a server runs
- `fleetfit.db`: SQLite
- `artifacts/`: content by SHA-256
- `pki/`: the CA, and the token of this machine's user
- `wheels/`: what agents are installed from, for devices to fetch
- `tmp/`: folders of running children, emptied at every start
- `addresses.json`: where the running server listens
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from fleetfit.core.errors import Conflict, ExhaustedResource, InvalidInput


def default_state() -> Path:
    """Where a server keeps its state unless told otherwise: `FLEETFIT_SERVER_STATE`, else the user's state folder."""
    return Path(os.environ.get("FLEETFIT_SERVER_STATE") or platformdirs.user_state_path("fleetfit") / "server")


class StateFolder:
    """The paths in a server's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "fleetfit.db"
        self.artifacts = root / "artifacts"
        self.pki = root / "pki"
        self.local_token = root / "pki" / "local.token"
        self.wheels = root / "wheels"
        self.scratch = root / "tmp"
        self.addresses = root / "addresses.json"

    def write_addresses(self, addresses: dict[str, object]) -> None:
        """Tell other processes where this server listens; they see all of it or nothing."""
        fresh = self.addresses.with_suffix(".new")
        fresh.write_text(json.dumps(addresses) + "\n")
        fresh.replace(self.addresses)


@contextmanager
def hold_state(root: Path) -> Iterator[StateFolder]:
    """Hold a server's folder, made if it is not there.

    Raises Conflict where another server holds it, InvalidInput where it cannot be written, ExhaustedResource where its disk is
    full; the same for the faults that are met while it is held.
    """
    with _explained(root):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
        with (root / "server.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(
                    f"another server already works in {root}; stop it, or give this one its own folder with --state"
                ) from error
            _prove_writable(root)
            yield StateFolder(root)


def _prove_writable(root: Path) -> None:
    # A full disk is found here and not by the first job.
    probe = root / ".probe"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * 65_536)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExhaustedResource(
                f"the disk of {root} is full; make room there, or name a folder on another disk with --state"
            ) from error
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise InvalidInput(
                f"{error.filename or root} cannot be written ({error.strerror}); name another folder with --state",
                field="state",
            ) from error
        raise
