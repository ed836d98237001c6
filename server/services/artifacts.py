"""Content in chunks: for people all of it, for a device what its own tasks name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from fleetfit.core.errors import Conflict, ExhaustedResource, InvalidInput, PermissionDenied, Unavailable
from fleetfit.proto.channels import CHUNK_BYTES
from fleetfit.proto.v1 import artifacts_pb2, artifacts_pb2_grpc, common_pb2
from fleetfit.server.services.edge import Context
from fleetfit.server.storage.artifacts import ArtifactStore

# Larger than any model that is fitted to an edge device, and than any set of arrays that is measured on one.
MOST_BYTES_OF_PEOPLE: Final = 64 << 30
# Raw samples and outputs' scores of one task take kilobytes to a few megabytes.
MOST_BYTES_OF_DEVICES: Final = 256 << 20
# Whether the caller may read this content.
MayRead = Callable[[Context, str], Awaitable[bool]]


async def people_may_read(context: Context, sha256: str) -> bool:
    """People may read everything."""
    return True


class Artifacts(artifacts_pb2_grpc.ArtifactsServicer):
    """See proto/v1/artifacts.proto. Whoever may call may add content; what may be read, `may_read` says.

    Stat tells everybody whether content is there: whoever can name it by its digest has had it before.
    """

    def __init__(self, store: ArtifactStore, may_read: MayRead, *, most_bytes: int) -> None:
        self._store = store
        self._may_read = may_read
        self._most_bytes = most_bytes

    async def Stat(
        self, request: artifacts_pb2.StatArtifactRequest, context: Context
    ) -> artifacts_pb2.StatArtifactResponse:
        complete = self._store.has(request.sha256)
        return artifacts_pb2.StatArtifactResponse(
            complete=complete, received_bytes=self._store.received(request.sha256)
        )

    async def Upload(
        self, requests: AsyncIterator[artifacts_pb2.UploadArtifactRequest], context: Context
    ) -> artifacts_pb2.UploadArtifactResponse:
        first = await anext(requests, None)
        if first is None or not first.HasField("artifact"):
            raise InvalidInput(
                "the first message of an upload must name the artifact; update the client", field="artifact"
            )
        artifact = first.artifact
        if artifact.size_bytes < 0 or first.offset_bytes < 0:
            raise InvalidInput("a size and an offset cannot be negative; update the client", field="artifact")
        if artifact.size_bytes > self._most_bytes:
            raise ExhaustedResource(
                f"{artifact.size_bytes / 1e6:.0f} MB are more than this server takes at once "
                f"({self._most_bytes / 1e6:.0f} MB); send less",
                field="artifact",
            )

        async def chunks() -> AsyncIterator[bytes]:
            if first.data:
                yield first.data
            async for request in requests:
                yield request.data

        try:
            await self._store.receive(artifact.sha256, artifact.size_bytes, first.offset_bytes, chunks())
        except Conflict as error:
            # Another call for the same content was quicker, or this one was cut: both are cured by asking how much has
            # arrived and going on there, which is what clients do when a call is unavailable.
            raise Unavailable(error.message) from error
        size_bytes = self._store.path(artifact.sha256).stat().st_size
        return artifacts_pb2.UploadArtifactResponse(
            artifact=common_pb2.ArtifactRef(sha256=artifact.sha256, size_bytes=size_bytes)
        )

    async def Download(
        self, request: artifacts_pb2.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[artifacts_pb2.DownloadArtifactResponse]:
        # Asked before looking: a device must not learn from the answer what else there is.
        if not await self._may_read(context, request.sha256):
            raise PermissionDenied(
                "no open task of this device reads this content; lease a task and fetch what it names", field="sha256"
            )
        path = self._store.path(request.sha256)
        size_bytes = path.stat().st_size
        if not 0 <= request.offset_bytes <= size_bytes:
            raise InvalidInput(
                f"the content has {size_bytes} bytes, so it cannot be read from byte {request.offset_bytes} on; "
                "fetch it from the beginning",
                field="offset_bytes",
            )
        with path.open("rb") as file:
            file.seek(request.offset_bytes)
            chunk = await asyncio.to_thread(file.read, CHUNK_BYTES)
            yield artifacts_pb2.DownloadArtifactResponse(data=chunk, total_size_bytes=size_bytes)
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield artifacts_pb2.DownloadArtifactResponse(data=chunk)
