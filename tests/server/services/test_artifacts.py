from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleetfit.core.errors import (
    ExhaustedResource,
    IntegrityError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from fleetfit.proto.channels import CHUNK_BYTES
from fleetfit.proto.transfer import download_file, upload_file
from fleetfit.proto.v1 import artifacts_pb2, artifacts_pb2_grpc, common_pb2
from fleetfit.server.services import artifacts as artifacts_module
from fleetfit.server.services.listeners import MOST_BYTES_OF_DEVICES

from .site import Site, refused, visit

Upload = artifacts_pb2.UploadArtifactRequest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(os.urandom(3 * CHUNK_BYTES + 17))
    return path


def reference(content: bytes) -> common_pb2.ArtifactRef:
    return common_pb2.ArtifactRef(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


async def several(*messages: Upload) -> AsyncIterator[Upload]:
    for message in messages:
        yield message


def test_there_and_back(tmp_path: Path, file: Path) -> None:
    async def scenario(site: Site) -> None:
        channel = site.people_channel()
        sent = await upload_file(channel, file, metadata=site.metadata)
        await download_file(channel, sent, tmp_path / "back", metadata=site.metadata)
        (tmp_path / "empty").write_bytes(b"")
        nothing = await upload_file(channel, tmp_path / "empty", metadata=site.metadata)
        await download_file(channel, nothing, tmp_path / "empty-back", metadata=site.metadata)

    visit(tmp_path / "site", scenario)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert (tmp_path / "empty-back").read_bytes() == b""


def test_an_upload_that_was_cut_goes_on_where_it_was(tmp_path: Path, file: Path) -> None:
    content = file.read_bytes()
    artifact = reference(content)

    async def scenario(site: Site) -> None:
        stub = artifacts_pb2_grpc.ArtifactsStub(site.people_channel())

        async def half() -> AsyncIterator[Upload]:
            yield Upload(artifact=artifact, data=content[:CHUNK_BYTES])
            yield Upload(data=content[CHUNK_BYTES : 2 * CHUNK_BYTES])
            await asyncio.sleep(60)

        call = stub.Upload(half(), metadata=site.metadata)
        stat = artifacts_pb2.StatArtifactRequest(sha256=artifact.sha256)
        while (await stub.Stat(stat, metadata=site.metadata)).received_bytes < CHUNK_BYTES:
            await asyncio.sleep(0.02)
        call.cancel()
        seen: list[int] = []
        await upload_file(
            site.people_channel(), file, metadata=site.metadata, on_progress=lambda done, total: seen.append(done)
        )
        assert seen[0] > 2 * CHUNK_BYTES, "what had arrived was sent again"
        assert site.house.store.path(artifact.sha256).read_bytes() == content

    visit(tmp_path / "site", scenario)


def test_two_who_send_the_same_at_once(tmp_path: Path, file: Path) -> None:
    async def scenario(site: Site) -> None:
        sent = await asyncio.gather(
            *(upload_file(site.people_channel(), file, metadata=site.metadata) for _ in range(4))
        )
        assert site.house.store.path(sent[0].sha256).read_bytes() == file.read_bytes()

    visit(tmp_path / "site", scenario)


def test_a_download_goes_on_where_it_was(tmp_path: Path, file: Path) -> None:
    content = file.read_bytes()

    async def scenario(site: Site) -> None:
        channel = site.people_channel()
        sent = await upload_file(channel, file, metadata=site.metadata)
        (tmp_path / "back.part").write_bytes(content[: CHUNK_BYTES + 5])
        seen: list[int] = []
        await download_file(
            channel, sent, tmp_path / "back", metadata=site.metadata, on_progress=lambda done, total: seen.append(done)
        )
        assert seen[0] > CHUNK_BYTES + 5

    visit(tmp_path / "site", scenario)
    assert (tmp_path / "back").read_bytes() == content


def test_uploads_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference(b"right")

    async def scenario(site: Site) -> None:
        stub = artifacts_pb2_grpc.ArtifactsStub(site.people_channel())

        async def send(*messages: Upload) -> Any:
            return await refused(stub.Upload(several(*messages), metadata=site.metadata))

        assert isinstance(await send(), InvalidInput)
        assert isinstance(await send(Upload(data=b"right")), InvalidInput)
        lie = common_pb2.ArtifactRef(sha256=right.sha256, size_bytes=-1)
        assert isinstance(await send(Upload(artifact=lie)), InvalidInput)
        path = common_pb2.ArtifactRef(sha256="../../etc/passwd", size_bytes=5)
        assert isinstance(await send(Upload(artifact=path, data=b"right")), InvalidInput)
        assert isinstance(await send(Upload(artifact=right, data=b"wrong")), IntegrityError)
        assert isinstance(await send(Upload(artifact=right, data=b"right and more")), InvalidInput)
        assert isinstance(await send(Upload(artifact=right, data=b"ri")), Unavailable)
        huge = common_pb2.ArtifactRef(sha256=right.sha256, size_bytes=artifacts_module.MOST_BYTES_OF_PEOPLE + 1)
        assert isinstance(await send(Upload(artifact=huge)), ExhaustedResource)
        much = common_pb2.ArtifactRef(sha256=hashlib.sha256(b"much").hexdigest(), size_bytes=1 << 20)
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        error = await send(Upload(artifact=much))
        assert isinstance(error, ExhaustedResource) and "make room" in error.message

    visit(tmp_path / "site", scenario)


def test_downloads_that_are_refused(tmp_path: Path, file: Path) -> None:
    async def scenario(site: Site) -> None:
        sent = await upload_file(site.people_channel(), file, metadata=site.metadata)
        stub = artifacts_pb2_grpc.ArtifactsStub(site.people_channel())

        async def get(sha256: str, offset: int = 0) -> Any:
            request = artifacts_pb2.DownloadArtifactRequest(sha256=sha256, offset_bytes=offset)
            return await refused(stub.Download(request, metadata=site.metadata).read())

        assert isinstance(await get("0" * 64), NotFound)
        assert isinstance(await get("../../etc/passwd"), InvalidInput)
        assert isinstance(await get(sent.sha256, sent.size_bytes + 1), InvalidInput)
        assert isinstance(await get(sent.sha256, -1), InvalidInput)

    visit(tmp_path / "site", scenario)


def test_a_device_sends_no_more_than_results_need(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        stub = artifacts_pb2_grpc.ArtifactsStub(site.agent_channel(await site.enrol()))
        huge = common_pb2.ArtifactRef(sha256="0" * 64, size_bytes=MOST_BYTES_OF_DEVICES + 1)
        assert isinstance(await refused(stub.Upload(several(Upload(artifact=huge)))), ExhaustedResource)

    visit(tmp_path / "site", scenario)


def test_a_device_cannot_fetch_what_it_was_not_given(tmp_path: Path, file: Path) -> None:
    async def scenario(site: Site) -> None:
        sent = await upload_file(site.people_channel(), file, metadata=site.metadata)
        channel = site.agent_channel(await site.enrol())
        for sha256 in (sent.sha256, "0" * 64):
            # The same answer for what is there and what is not.
            asked = common_pb2.ArtifactRef(sha256=sha256, size_bytes=sent.size_bytes)
            with pytest.raises(PermissionDenied, match="no open task"):
                await download_file(channel, asked, tmp_path / "stolen")

    visit(tmp_path / "site", scenario)
    assert not (tmp_path / "stolen").exists()
