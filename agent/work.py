"""One task from lease to result: fetch what it reads, measure in a child, keep the result."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc.aio

import fleetfit
from fleetfit.agent.cache import Cache
from fleetfit.agent.disk import Reserve, disk_full, is_full
from fleetfit.agent.hooks import APPLICATION_VARIABLE, HookFailed, service_stopped
from fleetfit.agent.silence import silence_limit_s, while_it_tells
from fleetfit.agent.spool import DIGESTS, OUTPUTS, PARTIAL_VARIABLE, PROGRESS, Spool, Spooled
from fleetfit.core.children import ENGINES_VARIABLE, ChildOutcome, Limits, run_child
from fleetfit.core.digests import sha256_bytes
from fleetfit.core.errors import ExhaustedResource, FleetfitError, InvalidInput, TimedOut, Unavailable
from fleetfit.core.stragglers import MARK_VARIABLE, kill_marked
from fleetfit.proto.v1 import common_pb2, measurement_pb2, work_pb2

log = logging.getLogger("fleetfit.agent")
Status = measurement_pb2.MeasurementStatus
_PASSING: Final = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "CANCELLED", "DATA_LOSS"}
)


# A link that is down may be down for minutes; a server that answers everything but this is given up in the end.
_LINK_PATIENCE_S: Final = 600.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 15.0


class Worker:
    """Carries out leased tasks in `folder`, one at a time."""

    def __init__(
        self, folder: Path, cache: Cache, spool: Spool, download_channel: Callable[[], grpc.aio.Channel]
    ) -> None:
        self._folder = folder
        self._cache = cache
        self._spool = spool
        self._download_channel = download_channel
        self._reserve = Reserve(folder.with_name("reserve"))
        # Below it are the marks of all that is started for this folder's tasks, in whichever life.
        self._mark = f"/agent-{sha256_bytes(str(folder.resolve()).encode())[:16]}"
        # What an earlier life left half done is leased again by the server.
        kill_marked(self._mark)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    async def carry_out(self, lease: work_pb2.TaskLease) -> Spooled:
        """Do the task and spool its result; a failure is a result too.

        Raises FleetfitError for the connection, and ExhaustedResource where the disk does not even take a failure.
        """
        taskdir = self._folder / f"{_plain(lease.task_id)}.{lease.fence}"
        self._reserve.hold()
        try:
            try:
                (taskdir / "in").mkdir(parents=True)
                await self._gather(lease, taskdir)
                (taskdir / "task.pb").write_bytes(lease.measure.SerializeToString())
                outcome = await self._measure(taskdir, silence_limit_s(lease.measure.method))
                result = taskdir / "result.pb.gz"
                if not result.exists():
                    if outcome.met_full_disk:
                        raise OSError(errno.ENOSPC, "the measuring process could not write its result")
                    last = outcome.stderr_tail.strip().splitlines()[-1:] or ["it said nothing"]
                    message = f"the measuring process ended as {outcome.kind} without a result: {last[0]}"
                    late = outcome.kind == "timed_out"
                    status = Status.MEASUREMENT_STATUS_TIMED_OUT if late else Status.MEASUREMENT_STATUS_CRASHED
                    _write_failure(result, status, message)
            except HookFailed as error:
                result = self._failure(taskdir, Status.MEASUREMENT_STATUS_REFUSED, str(error))
            except ExhaustedResource as error:
                result = self._failure(taskdir, Status.MEASUREMENT_STATUS_DISK_FULL, error.message)
            except OSError as error:
                if not is_full(error):
                    raise
                message = f"the device's disk is full; make room in {self._folder.parent}, then resume the job"
                result = self._failure(taskdir, Status.MEASUREMENT_STATUS_DISK_FULL, message)
            return self._spool.put(lease.task_id, lease.fence, result, taskdir / OUTPUTS)
        except OSError as error:
            if not is_full(error):
                raise
            raise disk_full(self._folder.parent) from error
        finally:
            shutil.rmtree(taskdir, ignore_errors=True)

    async def _measure(self, taskdir: Path, silence_s: float) -> ChildOutcome:
        arguments = ["-m", "fleetfit.agent.measuring", str(taskdir)]
        environment = {
            ENGINES_VARIABLE: str(self._folder.with_name("engines")),
            PARTIAL_VARIABLE: str(self._folder.with_name("partial")),
            MARK_VARIABLE: self._mark,
        }
        async with service_stopped(self._folder.parent) as stopped:
            if stopped:
                environment[APPLICATION_VARIABLE] = "stopped"
            child = run_child(arguments, Limits(), cwd=taskdir, environment=environment)
            return await while_it_tells(child, taskdir / PROGRESS, silence_s)

    def progress(self, lease: work_pb2.TaskLease) -> common_pb2.Progress:
        """How far the measuring child says it is."""
        path = self._folder / f"{_plain(lease.task_id)}.{lease.fence}" / PROGRESS
        progress = common_pb2.Progress(activity="fetching the build")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            said = json.loads(path.read_text())
            progress.activity = str(said["activity"])
            progress.fraction = float(said["fraction"])
            if said.get("remaining_ms") is not None:
                progress.remaining_ms = int(said["remaining_ms"])
        return progress

    async def _gather(self, lease: work_pb2.TaskLease, taskdir: Path) -> None:
        if not lease.artifacts:
            return
        keep = frozenset(named.artifact.sha256 for named in lease.artifacts)
        async with self._download_channel() as channel:
            for named in lease.artifacts:
                cached = await self._fetch(channel, named.artifact, keep)
                target = taskdir / "in" / _plain(named.name)
                try:
                    os.link(cached, target)
                except OSError:
                    await asyncio.to_thread(shutil.copyfile, cached, target)
        digests = {named.name: named.artifact.sha256 for named in lease.artifacts}
        (taskdir / DIGESTS).write_text(json.dumps(digests))

    async def _fetch(self, channel: grpc.aio.Channel, artifact: common_pb2.ArtifactRef, keep: frozenset[str]) -> Path:
        """The artifact's file. A link that is down is waited for: whether the task is still ours, the session finds out."""
        arrived, since, wait_s = -1, time.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                return await self._cache.fetch(channel, artifact, keep)
            except (Unavailable, TimedOut) as error:
                now_arrived = self._cache.arrived(artifact)
                if now_arrived > arrived:
                    arrived, since, wait_s = now_arrived, time.monotonic(), _FIRST_WAIT_S
                if time.monotonic() - since > _LINK_PATIENCE_S:
                    raise
                log.warning("%s; %d of %d bytes are here", error.message, arrived, artifact.size_bytes)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _failure(self, taskdir: Path, status: Status.ValueType, message: str) -> Path:
        # Room for a few hundred bytes is made by dropping what the task had gathered, and what was kept for this.
        shutil.rmtree(taskdir / "in", ignore_errors=True)
        self._reserve.give_up()
        taskdir.mkdir(parents=True, exist_ok=True)
        _write_failure(taskdir / "result.pb.gz", status, message)
        return taskdir / "result.pb.gz"


def _write_failure(path: Path, status: Status.ValueType, message: str) -> None:
    result = measurement_pb2.MeasurementResult(status=status, message=message, agent_version=fleetfit.__version__)
    path.write_bytes(gzip.compress(result.SerializeToString(), mtime=0))


def _plain(name: str) -> str:
    """A name that the server chose, proven to stay inside a folder."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidInput(f"the server sent the name {name!r}, which is not a plain file name; update the server")
    return name


def is_passing(error: FleetfitError) -> bool:
    """Whether waiting and trying again may help: a server that is away, a disk that is full, there or here.

    A bug of the server's too: it goes with the server's next version, and nobody should have to start every agent again. The
    core of gRPC has the same statuses for connections that broke in odd ways, and content may be damaged on its way.
    """
    return error.status in _PASSING
