from __future__ import annotations

import asyncio
import errno
import logging
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc._cython.cygrpc import ExecuteBatchError
from sqlalchemy.exc import OperationalError

from fleetfit.core.errors import (
    ChildFailed,
    ExhaustedResource,
    FleetfitError,
    InternalError,
    TimedOut,
    Unavailable,
    error_types,
)
from fleetfit.proto.status import from_rpc_error
from fleetfit.proto.v1 import jobs_pb2, jobs_pb2_grpc, work_pb2, work_pb2_grpc
from fleetfit.server.services.edge import Edge, explain

from .site import Site, refused, visit

SECRET = "the private part of the error, /home/someone/secret"


class Raising(jobs_pb2_grpc.JobsServicer):
    """Raises what it is told to, from every kind of call."""

    def __init__(self) -> None:
        self.error: BaseException = ValueError(SECRET)
        self.ended = asyncio.Event()

    async def GetJob(self, request: Any, context: Any) -> Any:
        raise self.error

    async def ListJobs(self, request: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    async def WatchJob(self, request: Any, context: Any) -> Any:
        try:
            yield jobs_pb2.WatchJobResponse()
            if request.job == "wait":
                await asyncio.sleep(60)
            raise self.error
        finally:
            self.ended.set()


def at_the_edge(scenario: Any, **limits: Any) -> Any:
    async def run() -> Any:
        servicer, edge = Raising(), Edge(lambda method, context: None, **limits)
        server = grpc.aio.server(interceptors=[edge])
        jobs_pb2_grpc.add_JobsServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await scenario(servicer, jobs_pb2_grpc.JobsStub(channel), edge)
        finally:
            await server.stop(None)

    return asyncio.run(run())


def make(kind: type[FleetfitError]) -> FleetfitError:
    if kind is ChildFailed:
        return ChildFailed("said to everybody", outcome="crashed", private=SECRET)
    return kind("said to everybody", field="model", private=SECRET)


def test_every_error_of_ours_arrives_as_itself_and_without_its_private_part() -> None:
    async def scenario(servicer: Raising, stub: Any, edge: Edge) -> None:
        for kind in error_types().values():
            servicer.error = make(kind)
            for call in (stub.GetJob(jobs_pb2.GetJobRequest()), _last(stub.WatchJob(jobs_pb2.WatchJobRequest()))):
                with pytest.raises(grpc.RpcError) as raised:
                    await call
                got = from_rpc_error(raised.value)
                assert (type(got), got.message) == (kind, "said to everybody")
                assert got.field == ("" if kind is ChildFailed else "model")
                assert SECRET not in str(raised.value) + repr(raised.value.trailing_metadata())

    at_the_edge(scenario)


async def _last(stream: Any) -> None:
    async for _ in stream:
        pass


def test_a_bug_is_an_id_outside_and_a_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(servicer: Raising, stub: Any, edge: Edge) -> FleetfitError:
        servicer.error = ValueError(SECRET)
        return await refused(stub.GetJob(jobs_pb2.GetJobRequest()))

    with caplog.at_level(logging.INFO, "fleetfit.server"):
        error = at_the_edge(scenario)
    assert isinstance(error, InternalError)
    assert SECRET not in error.message and "ValueError" not in error.message
    number = error.message.split("under the id ")[1].split(",")[0]
    (record,) = (r for r in caplog.records if r.levelno == logging.ERROR)
    assert number in record.getMessage()
    assert record.exc_info and SECRET in str(record.exc_info[1])


def test_a_call_without_a_deadline_ends_all_the_same() -> None:
    async def scenario(servicer: Raising, stub: Any, edge: Edge) -> FleetfitError:
        return await refused(stub.ListJobs(jobs_pb2.ListJobsRequest()))

    assert isinstance(at_the_edge(scenario, unary_limit_s=0.2), TimedOut)


def test_a_stream_whose_reader_goes_ends_at_once() -> None:
    async def scenario(servicer: Raising, stub: Any, edge: Edge) -> None:
        stream = stub.WatchJob(jobs_pb2.WatchJobRequest(job="wait"))
        await stream.read()
        assert edge.open_streams == 1
        stream.cancel()
        async with asyncio.timeout(5):
            await servicer.ended.wait()
            while edge.open_streams:
                await asyncio.sleep(0.01)

    at_the_edge(scenario)


def test_streams_are_told_when_the_server_stops() -> None:
    async def scenario(servicer: Raising, stub: Any, edge: Edge) -> None:
        streams = [stub.WatchJob(jobs_pb2.WatchJobRequest(job="wait")) for _ in range(5)]
        for stream in streams:
            await stream.read()
        edge.end_streams()
        for stream in streams:
            error = await refused(stream.read())
            assert isinstance(error, Unavailable) and "stopping" in error.message
        late = await refused(stub.WatchJob(jobs_pb2.WatchJobRequest(job="wait")).read())
        assert isinstance(late, Unavailable)

    at_the_edge(scenario)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ExhaustedResource),
        (OSError(errno.EDQUOT, "quota"), ExhaustedResource),
        (OSError(errno.EIO, "io"), InternalError),
        (TimeoutError(), TimedOut),
        (OperationalError("UPDATE", {}, Exception("database is locked")), Unavailable),
        (OperationalError("UPDATE", {}, Exception("no such table: person")), InternalError),
        (KeyError("x"), InternalError),
    ],
)
def test_what_stands_for_other_exceptions(error: Exception, kind: type[FleetfitError]) -> None:
    assert type(explain(error, "a test")) is kind


def test_a_caller_whose_connection_breaks_while_it_is_answered_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    """What gRPC's core raises from a write to a link that was cut (tests/system/test_links.py cuts one)."""
    found = explain(
        ExecuteBatchError('Failed "execute_batch": (SendMessageOperation,)'), "/fleetfit.v1.Artifacts/Download"
    )
    assert isinstance(found, Unavailable) and "bug" not in caplog.text


def test_a_server_with_fifty_open_streams_stops_within_ten_seconds(tmp_path: Path) -> None:
    """`Server.stop` waits out its whole grace for each of them, or for ever (grpc/grpc#37239)."""

    async def scenario(site: Site) -> None:
        members = [await site.enrol() for _ in range(10)]
        streams = []
        for member in members:
            channel = site.agent_channel(member)
            stub = work_pb2_grpc.AgentWorkStub(channel)
            session = (await stub.Hello(work_pb2.HelloRequest(protocol_version=1))).session_number
            for _ in range(5):
                stream = stub.Attend(work_pb2.AttendRequest(session_number=session))
                await stream.read()
                streams.append(stream)
        assert site.agents.edge.open_streams == 50
        begin = time.monotonic()
        await site.agents.stop()
        assert time.monotonic() - begin < 10
        for stream in streams:
            assert isinstance(await refused(stream.read()), Unavailable)
        assert site.agents.edge.open_streams == 0

    visit(tmp_path / "site", scenario)


def test_a_message_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        stub = jobs_pb2_grpc.JobsStub(site.people_channel())
        spec = jobs_pb2.JobSpec(recipes=[jobs_pb2.RecipeSource(yaml="x" * (5 << 20))])
        error = await refused(stub.PlanJob(jobs_pb2.PlanJobRequest(spec=spec), metadata=site.metadata))
        assert error.status == "RESOURCE_EXHAUSTED" or isinstance(error, ExhaustedResource)

    visit(tmp_path / "site", scenario)
