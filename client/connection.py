"""Calls to a server: the channel, the credential on every call, deadlines, retries, and errors as our own."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

# gRPC's core logs a line of its own for each failed handshake; the sentence that we raise says it better.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc.aio

from fleetfit.client.loop import SHARED_LOOP
from fleetfit.client.servers import Credential
from fleetfit.core.errors import FleetfitError, InvalidInput, PermissionDenied, TimedOut, Unavailable
from fleetfit.proto.channels import CLIENT_OPTIONS, bearer, people_credentials
from fleetfit.proto.status import from_rpc_error
from fleetfit.proto.transfer import OnProgress, download_file, upload_file
from fleetfit.proto.v1 import common_pb2

_Result = TypeVar("_Result")

# A server answers from its database in milliseconds; what takes longer is a stream or has its own deadline.
DEADLINE_S: Final = 30.0
# Waits before the second, third and fourth attempt of a call that may be repeated: a restarting server is back by then.
_WAITS_S: Final = (0.2, 0.6, 1.5)
# A stream that follows a job outlives a server's restart; a server that stays away longer is reported.
_STREAM_PATIENCE_S: Final = 120.0


class Connection:
    """One channel to one server, used from ordinary (not asynchronous) code of any thread."""

    def __init__(self, credential: Credential) -> None:
        self.credential = credential
        self.address = credential.address
        self._metadata = bearer(credential.secret)
        self._closed = False
        SHARED_LOOP.enter()
        try:
            self._channel = SHARED_LOOP.run(self._open(credential))
        except BaseException:
            SHARED_LOOP.leave()
            raise

    async def _open(self, credential: Credential) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            credential.address, people_credentials(credential.ca_pem), options=CLIENT_OPTIONS
        )

    def stub(self, kind: Callable[[grpc.aio.Channel], _Result]) -> _Result:
        """A service's stub on this channel."""

        async def make() -> _Result:
            return kind(self._channel)

        return SHARED_LOOP.run(make())

    def call(
        self,
        method: Callable[..., Awaitable[_Result]],
        request: Any,
        *,
        repeat: bool = True,
        deadline_s: float = DEADLINE_S,
    ) -> _Result:
        """One call with one answer. `repeat` says that it may be made again where the server could not be reached."""
        self._check_open()
        return SHARED_LOOP.run(self._call(method, request, repeat, deadline_s))

    async def _call(
        self, method: Callable[..., Awaitable[_Result]], request: Any, repeat: bool, deadline_s: float
    ) -> _Result:
        for wait_s in (*(_WAITS_S if repeat else ()), None):
            try:
                return await method(request, metadata=self._metadata, timeout=deadline_s)
            except grpc.RpcError as error:
                translated = self._error(error)
                if wait_s is None or not isinstance(translated, Unavailable):
                    raise translated from error
                await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        raise AssertionError

    def follow(
        self, method: Callable[..., Any], request: Any, on_lost: Callable[[FleetfitError], None] = lambda error: None
    ) -> Iterator[Any]:
        """The messages of a stream, which is opened again where the connection is lost.

        `on_lost` is called with each loss. Raises Unavailable where the server stays away for two minutes.
        """
        self._check_open()
        # One reader task and a queue: cancelling a read leaks in gRPC (#43360), ending the call does not.
        messages: queue.Queue[Any] = queue.Queue()
        reader = SHARED_LOOP.start(self._read(method, request, messages, on_lost))
        reader.add_done_callback(lambda _: messages.put(_END))
        try:
            while (message := messages.get()) is not _END:
                yield message
            reader.result()
        finally:
            reader.cancel()

    async def _read(
        self,
        method: Callable[..., Any],
        request: Any,
        messages: queue.Queue[Any],
        on_lost: Callable[[FleetfitError], None],
    ) -> None:
        lost_since: float | None = None
        connected = False
        while True:
            call = method(request, metadata=self._metadata)
            try:
                async for message in call:
                    lost_since, connected = None, True
                    messages.put(message)
                return
            except grpc.RpcError as error:
                translated = self._error(error)
                lost_since = lost_since or time.monotonic()
                # A server that never answered is not there; one that did is waited for.
                patience_s = _STREAM_PATIENCE_S if connected else sum(_WAITS_S)
                if not isinstance(translated, Unavailable) or time.monotonic() - lost_since > patience_s:
                    raise translated from error
                on_lost(translated)
                await asyncio.sleep(1.0 if connected else _WAITS_S[0])
            finally:
                call.cancel()

    def upload(self, path: Path, on_progress: OnProgress) -> common_pb2.ArtifactRef:
        """Send a file; it goes on where a lost connection stopped."""
        self._check_open()
        return self._transfer(upload_file(self._channel, path, metadata=self._metadata, on_progress=on_progress))

    def download(self, artifact: common_pb2.ArtifactRef, path: Path, on_progress: OnProgress) -> None:
        """Fetch an artifact; `path` appears when it is whole and its digest was checked."""
        self._check_open()
        self._transfer(download_file(self._channel, artifact, path, metadata=self._metadata, on_progress=on_progress))

    def _transfer(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        try:
            return SHARED_LOOP.run(work)
        except OSError as error:
            raise InvalidInput(
                f"{error.filename or 'the file'} cannot be read or written ({error.strerror}); check the path and the disk"
            ) from error

    def close(self) -> None:
        """Close the channel."""
        if not self._closed:
            self._closed = True
            try:
                SHARED_LOOP.run(self._channel.close())
            finally:
                SHARED_LOOP.leave()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed; call fleetfit.connect() again")

    def _error(self, error: grpc.RpcError) -> FleetfitError:
        translated = from_rpc_error(error, peer=f"the server at {self.address}")
        private = translated.private.lower()
        if isinstance(translated, Unavailable) and ("certificate_verify" in private or "handshake" in private):
            return PermissionDenied(
                f"the server at {self.address} is not the one that the credential is for (it shows another CA); give the "
                "right address, or the token of this server with FLEETFIT_TOKEN",
                private=translated.private,
            )
        if isinstance(translated, TimedOut):
            return TimedOut(f"the server at {self.address} did not answer in time; try again when it is less busy")
        return translated


_END: Final = object()
