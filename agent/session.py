"""The agent's conversation with the server: one channel, one stream of wake-ups, one task at a time.

A session outlives no connection, but a task does: while the server is away the measurement goes on, its result waits
in the spool, and it is reported when a new session stands.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

import fleetfit
from fleetfit.agent.cache import Cache
from fleetfit.agent.disk import disk_trouble
from fleetfit.agent.identity import FOLDER, Identity
from fleetfit.agent.memory import give_back_memory
from fleetfit.agent.spool import Spool, Spooled
from fleetfit.agent.work import Worker, is_passing
from fleetfit.core.errors import (
    FleetfitError,
    LeaseLost,
    NotFound,
    PermissionDenied,
    Superseded,
    TimedOut,
    Unavailable,
)
from fleetfit.core.waiting import within
from fleetfit.proto.channels import CLIENT_OPTIONS, agent_credentials
from fleetfit.proto.status import from_rpc_error
from fleetfit.proto.transfer import upload_file
from fleetfit.proto.v1 import snapshot_pb2, work_pb2, work_pb2_grpc
from fleetfit.proto.versions import AGENT_CAPABILITIES, MINIMUM_PROTOCOL_VERSION, PROTOCOL_VERSION

log = logging.getLogger("fleetfit.agent")

_CALL_S = 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
# Wake-ups come over the stream; asking now and then as well costs little and survives a lost one.
_POLL_S = 20.0
# What a device is changes rarely; after so long it is looked at anew when a session begins.
_LOOK_EVERY_S = 600.0
Answer = TypeVar("Answer")


class Agent:
    """Serves one server until it is told to stop."""

    def __init__(
        self,
        identity: Identity,
        state: Path,
        probe: Callable[[], Awaitable[snapshot_pb2.DeviceSnapshot]],
        *,
        cache_bytes: int,
        once: bool = False,
    ) -> None:
        self._identity = identity
        self._probe = probe
        self._once = once
        self._state = state
        self._spool = Spool(state / "spool")
        self._worker = Worker(state / "tasks", Cache(state / "cache", cache_bytes), self._spool, self._open_channel)
        self._wake = asyncio.Event()
        self._cancelled_task = ""
        self._session_number = 0
        # The server checks a device whose agent was started anew, not one that lost its connection.
        self._life = secrets.token_hex(8)
        self._snapshot: snapshot_pb2.DeviceSnapshot | None = None
        self._looked_at = 0.0
        self._job: asyncio.Task[Spooled] | None = None
        self._lease: work_pb2.TaskLease | None = None

    async def run(self) -> None:
        """Serve until cancelled, or, with `once`, until one task is reported.

        Raises FleetfitError where trying again cannot help: a version that is too old, an identity that is refused, a
        newer session of the same device.
        """
        wait_s = _FIRST_WAIT_S
        try:
            while True:
                try:
                    await self._session()
                    return
                except (FleetfitError, OSError) as caught:
                    # A disk may come back, and the server should hear from a device whose disk does not.
                    error = disk_trouble(self._state, caught) if isinstance(caught, OSError) else caught
                    if not is_passing(error):
                        raise
                    if "CERTIFICATE_VERIFY_FAILED" in error.private:
                        raise PermissionDenied(
                            f"the server at {self._identity.agent_address} is not the one this device enrolled with "
                            f"(its CA is another); to work for that one, remove {self._state / FOLDER} and enrol again with "
                            "a token of that server"
                        ) from error
                    # A full disk or a bug lets sessions begin: they must not follow each other as fast as after a lost
                    # connection.
                    if self._session_number and isinstance(error, (Unavailable, TimedOut)):
                        wait_s = _FIRST_WAIT_S
                    self._session_number = 0
                    log.warning("%s (next try in %.1f s)", error.message, wait_s)
                    # A fleet whose server restarts must not come back all in one moment.
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                    wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        finally:
            await self._drop_job()

    def _open_channel(self) -> grpc.aio.Channel:
        identity = self._identity
        credentials = agent_credentials(identity.ca_pem, identity.key_pem, identity.certificate_pem)
        return grpc.aio.secure_channel(identity.agent_address, credentials, options=CLIENT_OPTIONS)

    async def _call(self, call: Awaitable[Answer]) -> Answer:
        try:
            return await call
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer=f"the server at {self._identity.agent_address}") from error

    async def _session(self) -> None:
        # Looking takes a processor for a second: never beside a measurement that outlived the last session, nor at every try
        # to reach a server that is away, for another agent of this host may be measuring.
        now = time.monotonic()
        if self._snapshot is None or (self._job is None and now - self._looked_at > _LOOK_EVERY_S):
            self._looked_at = now
            try:
                self._snapshot = await self._probe()
            except FleetfitError as error:
                if self._snapshot is None:
                    raise
                log.warning("%s; what was found before is used", error.message)
        async with self._open_channel() as channel:
            stub = work_pb2_grpc.AgentWorkStub(channel)
            hello: work_pb2.HelloResponse = await self._call(
                stub.Hello(
                    work_pb2.HelloRequest(
                        agent_version=fleetfit.__version__,
                        protocol_version=PROTOCOL_VERSION,
                        oldest_protocol_version=MINIMUM_PROTOCOL_VERSION,
                        capabilities=AGENT_CAPABILITIES,
                        snapshot=self._snapshot,
                        life=self._life,
                    ),
                    timeout=_CALL_S,
                )
            )
            self._session_number = hello.session_number
            log.info("connected to %s as %s", self._identity.agent_address, hello.device_name)
            attending = asyncio.create_task(self._attend(stub))
            working = asyncio.create_task(self._work(stub, channel))
            both = (attending, working)
            try:
                done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
            # A connection that breaks ends both at once. What the stream says is the better reason: superseded, or stopping.
            for task in both:
                if task in done:
                    task.result()

    async def _attend(self, stub: work_pb2_grpc.AgentWorkAsyncStub) -> None:
        request = work_pb2.AttendRequest(session_number=self._session_number)
        stream = stub.Attend(request)
        try:
            async for message in stream:
                kind = message.WhichOneof("kind")
                if kind == "work_available":
                    self._wake.set()
                elif kind == "cancel_task":
                    self._cancel(message.cancel_task.task_id)
                elif kind == "superseded":
                    raise Superseded(
                        "another agent with this device's identity has connected; one device is one agent: "
                        "stop the other, or give this one an identity of its own with --state"
                    )
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer=f"the server at {self._identity.agent_address}") from error
        finally:
            stream.cancel()
        raise Unavailable(f"the server at {self._identity.agent_address} ended the session")

    async def _work(self, stub: work_pb2_grpc.AgentWorkAsyncStub, channel: grpc.aio.Channel) -> None:
        # Looking for what can be freed costs more than asking for work: once after each stretch of work is enough.
        tidy = False
        while True:
            if self._job is not None:
                await self._finish_job(stub)
            await self._report_all(stub, channel)
            self._wake.clear()
            answer: work_pb2.LeaseTaskResponse = await self._call(
                stub.LeaseTask(work_pb2.LeaseTaskRequest(session_number=self._session_number), timeout=_CALL_S)
            )
            if answer.HasField("lease"):
                checked = answer.lease.measure.health
                self._begin_job(answer.lease)
                del answer
                await self._finish_job(stub)
                await self._report_all(stub, channel)
                if self._once and not checked:
                    return
                tidy = False
            else:
                if not tidy:
                    give_back_memory()
                    tidy = True
                await within(self._wake.wait(), _POLL_S)

    def _begin_job(self, lease: work_pb2.TaskLease) -> None:
        what = "health check, " * lease.measure.health + lease.measure.candidate.build_id
        log.info("task %s: %s on %d threads", lease.task_id, what, lease.measure.threads)
        self._cancelled_task = ""
        self._lease = lease
        self._job = asyncio.create_task(self._worker.carry_out(lease))

    async def _finish_job(self, stub: work_pb2_grpc.AgentWorkAsyncStub) -> None:
        """Wait for the running task and keep its lease meanwhile; drop it where it is no longer wanted."""
        job, lease = self._job, self._lease
        if job is None or lease is None:
            return
        every_s = max(lease.lease_ms / 1000 / 3, 0.2)
        while not job.done():
            await asyncio.wait({job}, timeout=every_s)
            if job.done():
                break
            if not await self._keep(stub, lease) or self._cancelled_task == lease.task_id:
                log.info("task %s is no longer wanted here", lease.task_id)
                await self._drop_job()
                return
        self._job = self._lease = None
        if job.cancelled():
            return
        try:
            job.result()
        except FleetfitError as error:
            if is_passing(error):
                raise
            # Not allowed to fetch what the task names: it belongs to someone else by now.
            log.warning("task %s was given up: %s", lease.task_id, error.message)

    async def _keep(self, stub: work_pb2_grpc.AgentWorkAsyncStub, lease: work_pb2.TaskLease) -> bool:
        """Renew the lease. False where the task is no longer this agent's."""
        request = work_pb2.RenewLeaseRequest(
            session_number=self._session_number,
            task_id=lease.task_id,
            fence=lease.fence,
            progress=self._worker.progress(lease),
        )
        try:
            answer: work_pb2.RenewLeaseResponse = await self._call(stub.RenewLease(request, timeout=_CALL_S))
        except (LeaseLost, NotFound):
            return False
        return not answer.cancelled

    def _cancel(self, task_id: str) -> None:
        self._cancelled_task = task_id
        if self._lease is not None and self._lease.task_id == task_id and self._job is not None:
            self._job.cancel()

    async def _drop_job(self) -> None:
        job, self._job, self._lease = self._job, None, None
        if job is not None:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)

    async def _report_all(self, stub: work_pb2_grpc.AgentWorkAsyncStub, channel: grpc.aio.Channel) -> None:
        """Report everything in the spool, the oldest first, each until it is acknowledged or refused for good."""
        for spooled in self._spool:
            try:
                outputs = await upload_file(channel, spooled.outputs) if spooled.outputs.exists() else None
                reference = await upload_file(channel, spooled.path)
                request = work_pb2.ReportTaskRequest(
                    session_number=self._session_number,
                    task_id=spooled.task_id,
                    fence=spooled.fence,
                    result=reference,
                    outputs=outputs,
                )
                await self._call(stub.ReportTask(request, timeout=_CALL_S))
                log.info("task %s: reported", spooled.task_id)
            except FleetfitError as error:
                if is_passing(error) or isinstance(error, Superseded):
                    raise
                if not isinstance(error, (LeaseLost, NotFound, PermissionDenied)):
                    raise
                log.info("task %s: the result is no longer wanted: %s", spooled.task_id, error.message)
            self._spool.drop(spooled)
