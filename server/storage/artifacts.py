"""Content by SHA-256, in a folder: complete and verified, or not there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import Conflict, ExhaustedResource, IntegrityError, InvalidInput, NotFound

_HEX: Final = set("0123456789abcdef")
DEFAULT_FLOOR_BYTES: Final = 256 << 20


class ArtifactStore:
    """A folder of content: `objects/ab/abcd...` is complete, `partial/abcd...` is still arriving.

    `floor_bytes` of the disk are always left free. Uploads of the same content at the same time take turns; what arrived
    before a lost connection or a restart is kept.
    """

    def __init__(self, folder: Path, *, floor_bytes: int = DEFAULT_FLOOR_BYTES) -> None:
        self._objects, self._partial = folder / "objects", folder / "partial"
        self._floor_bytes = floor_bytes
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
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
        complete = self._where(sha256)
        if complete.exists():
            return complete.stat().st_size
        partial = self._partial / sha256
        return partial.stat().st_size if partial.exists() else 0

    async def receive(self, sha256: str, size_bytes: int, offset_bytes: int, chunks: AsyncIterator[bytes]) -> Path:
        """Append chunks to partial content and, when all has arrived, verify it and make it complete.

        Raises Conflict where `offset_bytes` is not what has arrived so far, IntegrityError where the digest differs (all of
        it is then dropped), ExhaustedResource where the disk has no room.
        """
        complete = self._where(sha256)
        async with self._turns[sha256]:
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
                        await asyncio.to_thread(file.write, chunk)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
            except OSError as error:
                raise self._translated(error) from error
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
            fresh = self._partial / f"{digest}.own-{os.getpid()}"
            try:
                shutil.copyfile(source, fresh)
                with fresh.open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                fresh.unlink(missing_ok=True)
                raise self._translated(error) from error
            complete.parent.mkdir(exist_ok=True)
            fresh.replace(complete)
        return digest, size

    def link(self, sha256: str, target: Path) -> None:
        """Put content under another name, sharing the bytes where the file system can."""
        source = self.path(sha256)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)

    def _complete(self, partial: Path, sha256: str, complete: Path) -> None:
        if sha256_file(partial) != sha256:
            partial.unlink()
            raise IntegrityError(
                "what arrived is not what was announced (SHA-256 differs); it was dropped, send it again"
            )
        complete.parent.mkdir(exist_ok=True)
        partial.replace(complete)

    def _check_room(self, wanted_bytes: int) -> None:
        free = shutil.disk_usage(self._objects).free
        if free < wanted_bytes + self._floor_bytes:
            raise ExhaustedResource(
                f"the server has no room for {wanted_bytes / 1e6:.1f} MB ({free / 1e6:.0f} MB free, "
                f"{self._floor_bytes / 1e6:.0f} MB are kept free); make room in {self._objects.parent} and try again"
            )

    def _translated(self, error: OSError) -> Exception:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error
        return ExhaustedResource(f"the server's disk is full; make room in {self._objects.parent} and try again")

    def _where(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= _HEX:
            raise InvalidInput("a digest is 64 lower-case hexadecimal digits", field="sha256")
        return self._objects / sha256[:2] / sha256

    def sweep(self) -> None:
        """Remove what our own interrupted copies left behind; interrupted uploads stay."""
        for path in self._partial.glob("*.own-*"):
            with contextlib.suppress(OSError):
                path.unlink()
