"""A full disk and one that cannot be written: how they are recognised, and where else temporary files may go."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from fleetfit.core.errors import ExhaustedResource, FleetfitError, InternalError

# Enough for the folder and the file of a failed task's result on any file system.
_RESERVE_BYTES: Final = 64 << 10
# Where Python looks for one before it takes the working folder. Source: the documentation of tempfile.gettempdir.
_TOLD: Final = ("TMPDIR", "TEMP", "TMP")
_USUAL: Final = ("/tmp", "/var/tmp", "/usr/tmp")  # noqa: S108 - looked at, not used


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk has no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(state: Path) -> ExhaustedResource:
    """The error of an agent whose folder cannot take any more."""
    return ExhaustedResource(
        f"the device's disk is full; make room in {state}, or start the agent with --state on a larger disk"
    )


def disk_trouble(state: Path, error: OSError) -> FleetfitError:
    """The error of an agent whose folder does not do what it should: full, gone, or read-only since the kernel met an error."""
    if is_full(error):
        return disk_full(state)
    return InternalError(
        f"the agent cannot use its folder {state} ({error.strerror or error}{f': {error.filename}' if error.filename else ''}); "
        "check the device's disk, or start the agent with --state on another"
    )


def prove_room(state: Path) -> None:
    """Make the agent's folder. Raises ExhaustedResource where its disk is full, OSError where it cannot be written."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        Reserve(state / ".probe").hold(strict=True)
    except OSError as error:
        if is_full(error):
            raise disk_full(state) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            (state / ".probe").unlink(missing_ok=True)


def has_temporary_folder() -> bool:
    """Whether a folder where temporary files usually go takes any."""
    for folder in (*filter(None, map(os.environ.get, _TOLD)), *_USUAL):
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"room")
            file.flush()
            return True
    return False


def give_temporary_folder(folder: Path, *, anew: bool = False) -> None:
    """Let this process and its children put temporary files into `folder`, which is made, where no usual folder takes any.

    On a system that is read-only but for one folder Python would take the working folder next: each child has another, and
    would find another lock of the host there. `anew`: what an earlier life left there is removed. Raises OSError.
    """
    if has_temporary_folder():
        return
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder.resolve())


class Reserve:
    """A file that is there only to be given up: on a full disk its room is what a failure is written to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hold(self, *, strict: bool = False) -> None:
        """Take the room, if there is any. Raises OSError only with `strict`."""
        try:
            if not self._path.exists():
                # Random: a file system that packs zeros would keep no room for them.
                self._path.write_bytes(os.urandom(_RESERVE_BYTES))
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            if strict:
                raise

    def give_up(self) -> None:
        """Free the room."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
