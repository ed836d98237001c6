from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.core.errors import Conflict, ExhaustedResource, IntegrityError, InvalidInput, NotFound
from fleetfit.server.storage.artifacts import ArtifactStore


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


class LineCut(Exception):
    pass


async def cut_after(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise LineCut


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store", floor_bytes=0)


def partial_files(store: ArtifactStore) -> list[str]:
    return sorted(path.name for path in store._partial.iterdir())


def test_what_becomes_complete_while_it_is_asked_for_has_arrived(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(1000)
    name = digest(content)
    partial, complete = store._partial / name, store._where(name)
    partial.write_bytes(content)
    looks = 0
    real = os.stat

    def stat(path: int | str | Path, **more: bool) -> os.stat_result:
        nonlocal looks
        try:
            return real(path, **more)  # type: ignore[arg-type]
        finally:
            if path == complete and not looks:
                # Another upload of the same content ends right after the first look.
                looks += 1
                complete.parent.mkdir(exist_ok=True)
                partial.rename(complete)

    monkeypatch.setattr(os, "stat", stat)
    assert store.received(name) == 1000
    assert looks == 1


def test_content_is_not_there_until_all_of_it_is(store: ArtifactStore) -> None:
    content = os.urandom(1000)
    name = digest(content)

    async def run() -> None:
        with pytest.raises(LineCut):
            await store.receive(name, 1000, 0, cut_after(content[:300], content[300:400]))
        assert not store.has(name)
        with pytest.raises(NotFound, match="upload it first"):
            store.path(name)
        assert store.received(name) == 400
        path = await store.receive(name, 1000, 400, chunks(content[400:]))
        assert path.read_bytes() == content

    asyncio.run(run())
    assert store.has(name)
    assert store.received(name) == 1000
    assert partial_files(store) == []


def test_what_arrived_before_a_restart_is_kept(store: ArtifactStore, tmp_path: Path) -> None:
    content = os.urandom(500)

    async def run() -> None:
        with pytest.raises(Conflict, match="ended after 200 of 500"):
            await store.receive(digest(content), 500, 0, chunks(content[:200]))
        again = ArtifactStore(tmp_path / "store", floor_bytes=0)
        again.sweep()
        assert again.received(digest(content)) == 200
        with pytest.raises(Conflict, match="200 bytes have arrived, not 0"):
            await again.receive(digest(content), 500, 0, chunks(content))
        await again.receive(digest(content), 500, 200, chunks(content[200:]))

    asyncio.run(run())
    assert store.path(digest(content)).read_bytes() == content


def test_false_content_is_dropped_and_may_be_sent_again(store: ArtifactStore) -> None:
    content, name = b"right", digest(b"right")

    async def run() -> None:
        with pytest.raises(IntegrityError, match="send it again"):
            await store.receive(name, 5, 0, chunks(b"wrong"))
        assert store.received(name) == 0
        await store.receive(name, 5, 0, chunks(content))

    asyncio.run(run())
    assert store.path(name).read_bytes() == content


def test_more_than_announced_is_refused(store: ArtifactStore) -> None:
    async def run() -> None:
        with pytest.raises(InvalidInput, match="more than the announced 3"):
            await store.receive(digest(b"abcdef"), 3, 0, chunks(b"abc", b"def"))

    asyncio.run(run())
    assert not store.has(digest(b"abcdef"))


def test_two_uploads_of_the_same_content_take_turns(store: ArtifactStore) -> None:
    content = os.urandom(64 * 1024)
    name = digest(content)

    async def slow() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 4096):
            await asyncio.sleep(0.001)
            yield content[at : at + 4096]

    async def run() -> None:
        paths = await asyncio.gather(*(store.receive(name, len(content), 0, slow()) for _ in range(4)))
        assert {path.read_bytes() for path in paths} == {content}

    asyncio.run(run())
    assert partial_files(store) == []
    assert len(store._turns) == 0


def test_a_cancelled_upload_frees_its_turn(store: ArtifactStore) -> None:
    content = os.urandom(100)
    begun = asyncio.Event()

    async def hangs() -> AsyncIterator[bytes]:
        yield content[:10]
        begun.set()
        await asyncio.sleep(60)

    async def run() -> None:
        first = asyncio.create_task(store.receive(digest(content), 100, 0, hangs()))
        await begun.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        got = store.received(digest(content))
        await store.receive(digest(content), 100, got, chunks(content[got:]))

    asyncio.run(run())
    assert store.path(digest(content)).read_bytes() == content


@pytest.mark.parametrize("name", ["", "abc", "../../etc/passwd", "G" * 64, "A" * 64, "a" * 63 + "/", "a" * 65])
def test_only_digests_become_paths(store: ArtifactStore, name: str) -> None:
    for use in (store.path, store.has, store.received):
        with pytest.raises(InvalidInput, match="64 lower-case"):
            use(name)


def test_the_floor_of_free_disk_is_kept(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    store = ArtifactStore(tmp_path / "store", floor_bytes=free * 2)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ExhaustedResource, match="make room"):
        store.put(tmp_path / "file")

    async def run() -> None:
        with pytest.raises(ExhaustedResource, match="make room"):
            await store.receive(digest(b"x"), 1, 0, chunks(b"x"))

    asyncio.run(run())


def test_a_disk_that_fills_up_meanwhile_says_so(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(100)

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _no_room)
            with pytest.raises(ExhaustedResource, match="disk is full"):
                await store.receive(digest(content), 100, 0, chunks(content))
        # The bytes are there; with room again, nothing needs to be sent twice.
        await store.receive(digest(content), 100, store.received(digest(content)), chunks())

    asyncio.run(run())
    assert store.path(digest(content)).read_bytes() == content


def _no_room(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_putting_the_same_file_from_many_threads(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(os.urandom(300_000))
    together = threading.Barrier(4)

    def put() -> tuple[str, int]:
        together.wait()
        return store.put(source)

    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(put) for _ in range(4)]}
    assert found == {(digest(source.read_bytes()), 300_000)}
    assert store.path(digest(source.read_bytes())).read_bytes() == source.read_bytes()
    assert source.exists()
    assert partial_files(store) == []


def test_a_copy_does_not_reach_the_store(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    name, _ = store.put(tmp_path / "file")
    store.copy(name, tmp_path / "copy")
    with (tmp_path / "copy").open("r+b") as file:
        file.write(b"lost")
    assert store.path(name).read_bytes() == b"kept"


def test_only_what_is_forgotten_is_swept(store: ArtifactStore) -> None:
    old, fresh = digest(b"old"), digest(b"fresh")
    for name in (old, fresh, f"{fresh}.own-0123"):
        (store._partial / name).write_bytes(b"part")
    os.utime(store._partial / old, (0, 0))
    store.sweep()
    assert partial_files(store) == [fresh]


def test_empty_content(store: ArtifactStore) -> None:
    path = asyncio.run(store.receive(digest(b""), 0, 0, chunks()))
    assert path.read_bytes() == b""


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=400), data=st.data())
def test_any_sequence_of_cuts_ends_with_the_content(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("cuts"), floor_bytes=0)
    name = digest(content)

    async def run() -> None:
        for _ in range(4):
            at = store.received(name)
            stop = data.draw(st.integers(at, len(content)))
            with pytest.raises(LineCut):
                await store.receive(name, len(content), at, cut_after(content[at:stop]))
            assert store.received(name) == stop
        at = store.received(name)
        await store.receive(name, len(content), at, chunks(content[at:]))

    asyncio.run(run())
    assert store.path(name).read_bytes() == content
