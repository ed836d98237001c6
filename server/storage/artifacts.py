"""Content by SHA-256, in a folder: complete and verified, or not there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from fleetfit.core.digests import is_sha256, sha256_file
from fleetfit.core.errors import Conflict, ExhaustedResource, IntegrityError, InvalidInput, NotFound
from fleetfit.core.figures import size

DEFAULT_FLOOR_BYTES: Final = 256 << 20
_FORGOTTEN_S: Final = 7 * 24 * 3600


class ArtifactStore:
    """A folder of content: `objects/ab/abcd...` is complete, `partial/abcd...` is still arriving.

    `floor_bytes` of the disk are always left free. Uploads of the same content at the same time take turns; what arrived
    before a lost connection or a restart is kept.
    """

    def __init__(self, folder: Path, *, floor_bytes: int = DEFAULT_FLOOR_BYTES) -> None:
        self._objects, self._partial = folder / "objects", folder / "partial"
        self._floor_bytes = floor_bytes
        # Weak: a turn is forgotten when nobody waits for it.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        for sub in (self._objects, self._partial):
            sub.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """The file of complete content. Raises NotFound where there is none, InvalidInput for what is no digest."""
        path = self._where(sha256)
        if not path.exists():
            raise NotFound(f"there is no content {sha256[:12]}... on this server; upload it first", field="sha256")
        return path

    def has(self, sha256: str) -> bool:
        """Whether the content is complete."""
        return self._where(sha256).exists()

    def received(self, sha256: str) -> int:
        """Bytes that have arrived so far."""
        complete, partial = self._where(sha256), self._partial / sha256
        # Looked at twice: another upload of the same content may become complete between the first two looks.
        for path in (complete, partial, complete):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    async def receive(self, sha256: str, size_bytes: int, offset_bytes: int, chunks: AsyncIterator[bytes]) -> Path:
        """Append chunks to partial content and, when all has arrived, verify it and make it complete.

        Raises Conflict where `offset_bytes` is not what has arrived so far, IntegrityError where the digest differs (all of
        it is then dropped), ExhaustedResource where the disk has no room.
        """
        complete = self._where(sha256)
        turn = self._turns.setdefault(sha256, asyncio.Lock())
        async with turn:
            if complete.exists():
                return complete
            partial = self._partial / sha256
            arrived = self.received(sha256)
            if offset_bytes != arrived:
                raise Conflict(f"{arrived} bytes have arrived, not {offset_bytes}; ask again how many, and go on there")
            self._check_room(size_bytes - arrived)
            try:
                with partial.open("ab") as file:
                    async for chunk in chunks:
                        arrived += len(chunk)
                        if arrived > size_bytes:
                            raise InvalidInput(
                                f"more than the announced {size_bytes} bytes arrived; announce the real size"
                            )
                        # Again for every chunk: other uploads fill the same disk.
                        self._check_room(len(chunk))
                        await asyncio.to_thread(file.write, chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
            except OSError as error:
                self._explain(error)
                raise
            if arrived < size_bytes:
                raise Conflict(f"the upload ended after {arrived} of {size_bytes} bytes; go on from there")
            await asyncio.to_thread(self._complete, partial, sha256, complete)
            return complete

    def put(self, source: Path) -> tuple[str, int]:
        """Take a file of our own in; its digest and size. The source stays."""
        digest, size = sha256_file(source), source.stat().st_size
        complete = self._where(digest)
        if not complete.exists():
            self._check_room(size)
            # Two threads may take the same content in at the same time.
            fresh = self._partial / f"{digest}.own-{secrets.token_hex(8)}"
            try:
                shutil.copyfile(source, fresh)
                _keep(fresh, complete)
            except OSError as error:
                fresh.unlink(missing_ok=True)
                self._explain(error)
                raise
        return digest, size

    def copy(self, sha256: str, target: Path) -> None:
        """Copy content to `target`. Never a link: a child that may write `target` must not reach the store's bytes."""
        try:
            shutil.copyfile(self.path(sha256), target)
        except OSError as error:
            self._explain(error)
            raise

    def _complete(self, partial: Path, sha256: str, complete: Path) -> None:
        if sha256_file(partial) != sha256:
            partial.unlink()
            raise IntegrityError(
                "what arrived is not what was announced (SHA-256 differs); it was dropped, send it again"
            )
        _keep(partial, complete)

    def _check_room(self, wanted_bytes: int) -> None:
        free = shutil.disk_usage(self._objects).free
        if free < wanted_bytes + self._floor_bytes:
            raise ExhaustedResource(
                f"the server has no room for {size(wanted_bytes)} ({free / 1e6:.0f} MB free, "
                f"{self._floor_bytes / 1e6:.0f} MB are kept free); make room in {self._objects.parent} and try again"
            )

    def _explain(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = f"the server's disk is full; make room in {self._objects.parent} and try again"
            raise ExhaustedResource(message) from error

    def _where(self, sha256: str) -> Path:
        if not is_sha256(sha256):
            raise InvalidInput("a digest is 64 lower-case hexadecimal digits", field="sha256")
        return self._objects / sha256[:2] / sha256

    def sweep(self) -> None:
        """Remove what our own interrupted copies left behind, and uploads that nobody went on with for a week."""
        forgotten = time.time() - _FORGOTTEN_S
        for path in self._partial.iterdir():
            with contextlib.suppress(OSError):
                if ".own-" in path.name or path.stat().st_mtime < forgotten:
                    path.unlink()


def _keep(fresh: Path, complete: Path) -> None:
    """Give a finished file its name so that a power cut leaves all of it or nothing."""
    complete.parent.mkdir(exist_ok=True)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(complete)
    for folder in (complete.parent, complete.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
