"""The bounded folder of downloaded content, named by digest."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import time
from pathlib import Path

import grpc.aio

from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import ExhaustedResource
from fleetfit.core.figures import size
from fleetfit.proto.transfer import download_file
from fleetfit.proto.v1 import common_pb2

# Left free for everything else on the device.
_FLOOR_BYTES = 64 << 20


class Cache:
    """Content by SHA-256, at most `limit_bytes` of it; what was used longest ago goes first.

    Content is verified when it arrives and again each time it is handed out: a flash card that rots must not make
    wrong measurements.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)

    async def fetch(
        self, channel: grpc.aio.Channel, artifact: common_pb2.ArtifactRef, keep: frozenset[str] = frozenset()
    ) -> Path:
        """The artifact's file, downloaded if need be; an interrupted download goes on where it stopped.

        Content in `keep` is not evicted to make room. Raises ExhaustedResource where the disk has no room,
        IntegrityError, and what the server raised.
        """
        path = self._folder / artifact.sha256
        if path.exists():
            # Seconds for what is large, on a slow card: the lease is renewed meanwhile.
            whole = path.stat().st_size == artifact.size_bytes
            if whole and await asyncio.to_thread(sha256_file, path) == artifact.sha256:
                os.utime(path, (time.time(), path.stat().st_mtime))
                return path
            path.unlink()
        self._make_room(artifact, keep)
        try:
            await download_file(channel, artifact, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._part(artifact).unlink(missing_ok=True)
            raise self._no_room(artifact.size_bytes) from error
        return path

    def arrived(self, artifact: common_pb2.ArtifactRef) -> int:
        """How many bytes of an artifact that is not whole yet are here."""
        with contextlib.suppress(OSError):
            return self._part(artifact).stat().st_size
        return 0

    def _part(self, artifact: common_pb2.ArtifactRef) -> Path:
        return self._folder / f"{artifact.sha256}.part"

    def _make_room(self, artifact: common_pb2.ArtifactRef, keep: frozenset[str]) -> None:
        others = [p for p in self._folder.iterdir() if p.name.split(".")[0] not in keep | {artifact.sha256}]
        others.sort(key=lambda path: path.stat().st_atime)
        used = sum(path.stat().st_size for path in self._folder.iterdir())
        needed = artifact.size_bytes - self.arrived(artifact)
        while others and (used + needed > self._limit_bytes or self._free() < needed + _FLOOR_BYTES):
            oldest = others.pop(0)
            used -= oldest.stat().st_size
            oldest.unlink()
        if self._free() < needed + _FLOOR_BYTES:
            raise self._no_room(needed)

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _no_room(self, size_bytes: int) -> ExhaustedResource:
        return ExhaustedResource(
            f"the device has no room for {size(size_bytes)} in {self._folder} "
            f"({self._free() / 1e6:.0f} MB free, {_FLOOR_BYTES / 1e6:.0f} MB are kept free); make room there, or start "
            "the agent with --state on a larger disk"
        )
