from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fleetfit.core.errors import ExhaustedResource, FleetfitError
from fleetfit.proto.channels import CHUNK_BYTES
from fleetfit.proto.status import status_code, to_status, trailing_metadata
from fleetfit.proto.transfer import upload_file
from fleetfit.proto.v1 import artifacts_pb2, artifacts_pb2_grpc


class Store(artifacts_pb2_grpc.ArtifactsServicer):
    """Keeps what arrives; can cut the line after some bytes, or refuse."""

    def __init__(self) -> None:
        self.received: dict[str, bytearray] = {}
        self.sizes: dict[str, int] = {}
        self.offsets: list[int] = []
        self.cut_after: int | None = None
        self.refusal: FleetfitError | None = None
        # Refusals whose words gRPC loses (grpc/grpc#36066). Here the server says what gRPC says then: when it happens
        # by itself is a race.
        self.lost_answers = 0

    async def Stat(  # noqa: N802
        self, request: artifacts_pb2.StatArtifactRequest, context: grpc.aio.ServicerContext
    ) -> artifacts_pb2.StatArtifactResponse:
        got = len(self.received.get(request.sha256, b""))
        return artifacts_pb2.StatArtifactResponse(
            complete=got == self.sizes.get(request.sha256, -1), received_bytes=got
        )

    async def Upload(  # noqa: N802
        self, chunks: AsyncIterator[artifacts_pb2.UploadArtifactRequest], context: grpc.aio.ServicerContext
    ) -> artifacts_pb2.UploadArtifactResponse:
        digest = ""
        async for chunk in chunks:
            if chunk.HasField("artifact"):
                digest = chunk.artifact.sha256
                self.sizes[digest] = chunk.artifact.size_bytes
                self.offsets.append(chunk.offset_bytes)
                if self.lost_answers > 0:
                    self.lost_answers -= 1
                    await context.abort(grpc.StatusCode.INTERNAL, "Internal error from Core")
                if self.refusal is not None:
                    context.set_trailing_metadata(trailing_metadata(self.refusal))
                    await context.abort(status_code(self.refusal), to_status(self.refusal).message)
            got = self.received.setdefault(digest, bytearray())
            got.extend(chunk.data)
            if self.cut_after is not None and len(got) >= self.cut_after:
                self.cut_after = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        return artifacts_pb2.UploadArtifactResponse()


def _serve(store: Store, use: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        server = grpc.aio.server()
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(store, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await use(channel)
        finally:
            await server.stop(None)

    return asyncio.run(run())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(os.urandom(3 * CHUNK_BYTES + 17))
    return path


def test_a_file_arrives_whole_and_is_not_sent_twice(file: Path) -> None:
    store = Store()
    seen: list[tuple[int, int]] = []

    async def twice(channel: grpc.aio.Channel) -> None:
        first = await upload_file(channel, file, on_progress=lambda done, total: seen.append((done, total)))
        assert await upload_file(channel, file) == first

    _serve(store, twice)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert bytes(store.received[digest]) == file.read_bytes()
    assert store.offsets == [0]
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)
    assert seen == sorted(seen)


def test_a_cut_line_goes_on_where_it_was(file: Path) -> None:
    store = Store()
    store.cut_after = CHUNK_BYTES
    _serve(store, lambda channel: upload_file(channel, file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert bytes(store.received[digest]) == file.read_bytes()
    assert len(store.offsets) == 2
    assert store.offsets[1] >= CHUNK_BYTES


def test_what_the_server_refuses_is_raised_as_it_was(file: Path) -> None:
    store = Store()
    store.refusal = ExhaustedResource("the server's disk is full; make room in its state folder")
    with pytest.raises(ExhaustedResource, match="make room"):
        _serve(store, lambda channel: upload_file(channel, file))


@pytest.mark.parametrize("lost", [1, 3])
def test_a_refusal_that_grpc_loses_is_asked_for_again(file: Path, lost: int) -> None:
    store = Store()
    store.refusal = ExhaustedResource("the server's disk is full; make room in its state folder")
    store.lost_answers = lost
    with pytest.raises(ExhaustedResource, match="make room"):
        _serve(store, lambda channel: upload_file(channel, file))
    assert len(store.offsets) == lost + 1
    assert not store.received


def test_a_refused_upload_leaves_no_file_open(file: Path) -> None:
    store = Store()
    store.refusal = ExhaustedResource("the server's disk is full; make room in its state folder")

    async def refused(channel: grpc.aio.Channel) -> list[str]:
        for _ in range(20):
            with pytest.raises(ExhaustedResource):
                await upload_file(channel, file)
        return [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]

    assert str(file) not in _serve(store, refused)


def test_many_refusals_beside_a_running_write_are_all_told(file: Path) -> None:
    store = Store()
    store.refusal = ExhaustedResource("the server's disk is full; make room in its state folder")

    async def often(channel: grpc.aio.Channel) -> list[BaseException | object]:
        return await asyncio.gather(*(upload_file(channel, file) for _ in range(60)), return_exceptions=True)

    said = {(type(answer), str(answer)) for answer in _serve(store, often)}
    assert said == {(ExhaustedResource, str(store.refusal))}


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    store = Store()
    reference = _serve(store, lambda channel: upload_file(channel, tmp_path / "empty"))
    assert reference.size_bytes == 0
