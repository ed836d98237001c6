from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from fleetfit.agent.cache import Cache
from fleetfit.core.errors import ExhaustedResource, IntegrityError
from fleetfit.proto.v1 import artifacts_pb2_grpc, common_pb2


def _with_channel(shelf: Any, use: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        server = grpc.aio.server()
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(shelf, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await use(channel)
        finally:
            await server.stop(None)

    return asyncio.run(run())


def test_content_is_fetched_once(tmp_path: Path, shelf: Any) -> None:
    cache = Cache(tmp_path, 1 << 20)
    artifact = shelf.put(b"x" * 5000)

    async def twice(channel: grpc.aio.Channel) -> None:
        for _ in range(2):
            assert (await cache.fetch(channel, artifact)).read_bytes() == b"x" * 5000

    _with_channel(shelf, twice)
    assert shelf.downloads == [0]


def test_a_cut_line_goes_on_where_it_was(tmp_path: Path, shelf: Any) -> None:
    shelf.break_after = 3000
    artifact = shelf.put(os.urandom(10_000))
    path = _with_channel(shelf, lambda channel: Cache(tmp_path, 1 << 20).fetch(channel, artifact))
    assert path.read_bytes() == shelf.contents[artifact.sha256]
    assert shelf.downloads == [0, 3000]


def test_what_has_arrived_needs_no_room_again(tmp_path: Path, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that holds all of it once: what arrived before the line was cut is on the disk already."""
    content = os.urandom(10_000)
    artifact = shelf.put(content)
    (tmp_path / f"{artifact.sha256}.part").write_bytes(content[:9000])
    cache = Cache(tmp_path, 12_000)
    (tmp_path / "other").write_bytes(bytes(1500))
    monkeypatch.setattr(Cache, "_free", lambda self: (64 << 20) + 1500)
    path = _with_channel(shelf, lambda channel: cache.fetch(channel, artifact))
    assert path.read_bytes() == content and shelf.downloads == [9000]
    assert (tmp_path / "other").exists()


def test_content_that_rots_on_disk_is_fetched_again(tmp_path: Path, shelf: Any) -> None:
    cache = Cache(tmp_path, 1 << 20)
    artifact = shelf.put(b"good" * 100)

    async def rot(channel: grpc.aio.Channel) -> bytes:
        path = await cache.fetch(channel, artifact)
        path.write_bytes(b"evil" * 100)
        return (await cache.fetch(channel, artifact)).read_bytes()

    assert _with_channel(shelf, rot) == b"good" * 100


def test_content_that_is_not_what_was_announced(tmp_path: Path, shelf: Any) -> None:
    artifact = shelf.put(b"good" * 100)
    shelf.contents[artifact.sha256] = b"evil" * 100
    with pytest.raises(IntegrityError, match="SHA-256"):
        _with_channel(shelf, lambda channel: Cache(tmp_path, 1 << 20).fetch(channel, artifact))
    assert list(tmp_path.iterdir()) == []


def test_what_was_used_longest_ago_goes_first_and_what_is_kept_stays(tmp_path: Path, shelf: Any) -> None:
    cache = Cache(tmp_path, 10_000)
    a, b, c, d = (shelf.put(bytes([n]) * 4000) for n in range(4))

    async def fill(channel: grpc.aio.Channel) -> None:
        for age, artifact in ((300, a), (200, b)):
            path = await cache.fetch(channel, artifact)
            os.utime(path, (path.stat().st_mtime - age, path.stat().st_mtime))
        await cache.fetch(channel, c)
        assert {p.name for p in tmp_path.iterdir()} == {b.sha256, c.sha256}
        await cache.fetch(channel, d, frozenset({b.sha256, d.sha256}))
        assert {p.name for p in tmp_path.iterdir()} == {b.sha256, d.sha256}

    _with_channel(shelf, fill)


def test_content_larger_than_the_disk(tmp_path: Path, shelf: Any) -> None:
    artifact = common_pb2.ArtifactRef(sha256="0" * 64, size_bytes=1 << 60)
    with pytest.raises(ExhaustedResource, match="make room"):
        _with_channel(shelf, lambda channel: Cache(tmp_path, 1 << 20).fetch(channel, artifact))
