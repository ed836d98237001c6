"""Moving artifacts: in chunks, going on where a lost connection stopped, and checked by SHA-256 at the end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, Final

import grpc
import grpc.aio

from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import IntegrityError, Unavailable
from fleetfit.proto.channels import CHUNK_BYTES
from fleetfit.proto.status import from_rpc_error
from fleetfit.proto.v1 import artifacts_pb2, artifacts_pb2_grpc, common_pb2

Metadata = tuple[tuple[str, str], ...]
# Called with bytes done and bytes in all.
OnProgress = Callable[[int, int], None]

_ATTEMPTS: Final = 8
_TRY_AGAIN: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
# What grpc.aio says in the server's place where the server ended a call while a chunk was being written (grpc/grpc#36066).
_ANSWER_LOST: Final = (grpc.StatusCode.INTERNAL, "Internal error from Core")


def _ignore(done: int, total: int) -> None: ...


async def upload_file(
    channel: grpc.aio.Channel, path: Path, *, metadata: Metadata = (), on_progress: OnProgress = _ignore
) -> common_pb2.ArtifactRef:
    """Upload a file and return its name in the store. A file that is already there is not sent again.

    Raises what the server raised, or Unavailable after several attempts without any advance.
    """
    stub = artifacts_pb2_grpc.ArtifactsStub(channel)
    digest = await asyncio.to_thread(sha256_file, path)
    artifact = common_pb2.ArtifactRef(sha256=digest, size_bytes=path.stat().st_size)
    failures, reached = 0, -1
    # A refusal of the first message is lost only where a chunk follows at once, so after one was lost the chunks wait.
    wait_s = 0.0
    # Opened here: gRPC neither finishes nor closes an iterator of requests when the server ends the call.
    with path.open("rb") as file:
        while True:
            try:
                state = await stub.Stat(artifacts_pb2.StatArtifactRequest(sha256=digest), metadata=metadata)
                if state.complete:
                    on_progress(artifact.size_bytes, artifact.size_bytes)
                    return artifact
                if state.received_bytes > reached:
                    failures, reached = 0, state.received_bytes
                chunks = _chunks(file, artifact, state.received_bytes, wait_s, on_progress)
                await stub.Upload(chunks, metadata=metadata)
                return artifact
            except grpc.RpcError as error:
                wait_s = min(0.5 * 2**failures, 5.0) if _lost_answer(error) else 0.0
                failures = await _again(error, failures, f"sending {path.name}")


async def _chunks(
    file: BinaryIO, artifact: common_pb2.ArtifactRef, offset: int, wait_s: float, on_progress: OnProgress
) -> AsyncIterator[artifacts_pb2.UploadArtifactRequest]:
    yield artifacts_pb2.UploadArtifactRequest(artifact=artifact, offset_bytes=offset)
    await asyncio.sleep(wait_s)
    while chunk := await asyncio.to_thread(os.pread, file.fileno(), CHUNK_BYTES, offset):
        yield artifacts_pb2.UploadArtifactRequest(data=chunk)
        offset += len(chunk)
        on_progress(offset, artifact.size_bytes)


async def download_file(
    channel: grpc.aio.Channel,
    artifact: common_pb2.ArtifactRef,
    path: Path,
    *,
    metadata: Metadata = (),
    on_progress: OnProgress = _ignore,
) -> None:
    """Download an artifact to `path`, which appears only when it is whole and verified.

    What arrived is kept in `path` + `.part`, across calls and restarts. Raises IntegrityError where the content is not
    what its digest says (the part is then dropped), OSError where the disk is full, and what the server raised.
    """
    part = path.with_name(path.name + ".part")
    stub = artifacts_pb2_grpc.ArtifactsStub(channel)
    failures = 0
    while True:
        offset = part.stat().st_size if part.exists() else 0
        if offset > artifact.size_bytes:
            part.unlink()
            offset = 0
        call = None
        try:
            if offset < artifact.size_bytes or artifact.size_bytes == 0:
                request = artifacts_pb2.DownloadArtifactRequest(sha256=artifact.sha256, offset_bytes=offset)
                call = stub.Download(request, metadata=metadata)
                with part.open("ab") as file:
                    async for response in call:
                        if response.data:
                            failures = 0
                            await asyncio.to_thread(file.write, response.data)
                            offset += len(response.data)
                            on_progress(offset, artifact.size_bytes)
                            if offset > artifact.size_bytes:
                                break
                    file.flush()
                    os.fsync(file.fileno())
            break
        except grpc.RpcError as error:
            failures = await _again(error, failures, f"fetching {path.name}")
        finally:
            if call is not None:
                call.cancel()
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != artifact.sha256 or part.stat().st_size != artifact.size_bytes:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise IntegrityError(
            f"what arrived for {path.name} is not what was announced (SHA-256 differs); it was dropped, try again"
        )
    part.replace(path)


async def _again(error: grpc.RpcError, failures: int, activity: str) -> int:
    """Wait before another attempt, or raise. The wait grows; an advance in between starts the count anew."""
    translated = from_rpc_error(error)
    code = error.code() if hasattr(error, "code") else None
    if code not in _TRY_AGAIN and not _lost_answer(error):
        raise translated from error
    if failures + 1 >= _ATTEMPTS:
        raise Unavailable(f"{activity} failed {_ATTEMPTS} times in a row: {translated.message}") from error
    await asyncio.sleep(min(0.2 * 2**failures, 5.0))
    return failures + 1


def _lost_answer(error: grpc.RpcError) -> bool:
    """Whether gRPC put words of its own in the place of the server's answer."""
    return isinstance(error, grpc.aio.AioRpcError) and (error.code(), error.details()) == _ANSWER_LOST
