from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from fleetfit.proto.v1 import artifacts_pb2, artifacts_pb2_grpc, common_pb2


class Shelf(artifacts_pb2_grpc.ArtifactsServicer):
    """A real server for contents, which can be told to break off or to lie."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.downloads: list[int] = []
        self.break_after: int | None = None

    def put(self, content: bytes) -> common_pb2.ArtifactRef:
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return common_pb2.ArtifactRef(sha256=digest, size_bytes=len(content))

    async def Download(  # noqa: N802 - the protocol's name
        self, request: artifacts_pb2.DownloadArtifactRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[artifacts_pb2.DownloadArtifactResponse]:
        content = self.contents.get(request.sha256)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "it belongs to someone else")
        assert content is not None
        self.downloads.append(request.offset_bytes)
        sent = 0
        for at in range(request.offset_bytes, len(content), 1000):
            if self.break_after is not None and sent >= self.break_after:
                self.break_after = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the line is cut")
            yield artifacts_pb2.DownloadArtifactResponse(data=content[at : at + 1000], total_size_bytes=len(content))
            sent += 1000

    async def Stat(  # noqa: N802
        self, request: artifacts_pb2.StatArtifactRequest, context: grpc.aio.ServicerContext
    ) -> artifacts_pb2.StatArtifactResponse:
        return artifacts_pb2.StatArtifactResponse(complete=request.sha256 in self.contents)

    async def Upload(  # noqa: N802
        self, requests: AsyncIterator[artifacts_pb2.UploadArtifactRequest], context: grpc.aio.ServicerContext
    ) -> artifacts_pb2.UploadArtifactResponse:
        content = b"".join([request.data async for request in requests])
        return artifacts_pb2.UploadArtifactResponse(artifact=self.put(content))
