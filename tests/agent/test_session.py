"""The agent against a server of its own kind: a real socket, mutual TLS, a script of what the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import fleetfit
from fleetfit.agent import session, work
from fleetfit.agent.session import Agent
from fleetfit.agent.spool import Spool
from fleetfit.core.errors import (
    Conflict,
    ExhaustedResource,
    FleetfitError,
    InternalError,
    LeaseLost,
    NotFound,
    PermissionDenied,
    Superseded,
    Unavailable,
    VersionTooOld,
)
from fleetfit.proto import transfer
from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2, work_pb2
from fleetfit.proto.versions import AGENT_CAPABILITIES, PROTOCOL_VERSION

from ..runtimes.builds import affine
from .desk import Desk, PaperChild
from .measuring.tasks import QUICK, build_ref

Status = measurement_pb2.MeasurementStatus


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> PaperChild:
    child = PaperChild()
    monkeypatch.setattr(work, "run_child", child)
    return child


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_FIRST_WAIT_S", 0.05)


async def probe() -> snapshot_pb2.DeviceSnapshot:
    return snapshot_pb2.DeviceSnapshot(machine="x86_64")


class Stage:
    """A desk and an agent that serves it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.desk = Desk(folder)
        self.agent: asyncio.Task[None] | None = None

    def begin(self, **options: Any) -> asyncio.Task[None]:
        agent = Agent(self.desk.enrol(), self.state, probe, cache_bytes=1 << 20, **options)
        self.agent = asyncio.create_task(agent.run())
        return self.agent

    @property
    def spooled(self) -> list[str]:
        return [result.task_id for result in Spool(self.state / "spool")]


def play(folder: Path, scene: Callable[[Stage, Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Stage(folder)
        await stage.desk.open()
        try:
            async with asyncio.timeout(30):
                await scene(stage, stage.desk)
        finally:
            if stage.agent is not None:
                stage.agent.cancel()
                await asyncio.gather(stage.agent, return_exceptions=True)
            await stage.desk.shut()

    asyncio.run(run())


def test_a_task_is_leased_measured_and_reported(tmp_path: Path) -> None:
    """With the real measuring child."""
    measure = measurement_pb2.MeasureTask(candidate=build_ref("candidate.onnx"), threads=1, batch=2, method=QUICK)

    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("t1", measure, candidate=affine())
        await stage.begin(once=True)
        (report,) = desk.reports
        assert (report.session_number, report.task_id, report.fence) == (1, "t1", 3)
        result = desk.result()
        assert (result.status, result.condition["batch"]) == (Status.MEASUREMENT_STATUS_MEASURED, "2")
        assert result.solo.latency_ns
        (hello,) = desk.hellos
        assert (hello.agent_version, hello.protocol_version) == (fleetfit.__version__, PROTOCOL_VERSION)
        assert tuple(hello.capabilities) == AGENT_CAPABILITIES and hello.snapshot.machine == "x86_64"
        assert not stage.spooled and not list((stage.state / "tasks").iterdir())

    play(tmp_path, scene)


def test_a_lease_is_renewed_with_progress_while_the_child_works(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        paper.gate.clear()
        desk.offer("t1")
        agent = stage.begin(once=True)
        await desk.until(lambda: len(desk.renewals) >= 2)
        renewal = desk.renewals[0]
        assert (renewal.session_number, renewal.task_id, renewal.fence) == (1, "t1", 3)
        assert renewal.progress.activity
        assert not desk.reports
        paper.gate.set()
        await agent
        assert [report.task_id for report in desk.reports] == ["t1"]

    play(tmp_path, scene)


@pytest.mark.parametrize("how", ["lease lost", "task gone", "cancelled at renewal", "cancelled by message"])
def test_a_task_that_is_no_longer_wanted_is_dropped_and_the_next_is_done(
    tmp_path: Path, paper: PaperChild, how: str
) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        paper.gate.clear()
        desk.offer("t1")
        stage.begin()
        await desk.until(lambda: paper.started)
        if how == "lease lost":
            desk.errors["RenewLease"].append(LeaseLost("it was leased again"))
        elif how == "task gone":
            desk.errors["RenewLease"].append(NotFound("no such task"))
        elif how == "cancelled at renewal":
            desk.cancelled = True
        else:
            desk.say(cancel_task=work_pb2.CancelTask(task_id="t1"))
        await desk.until(lambda: paper.killed)
        desk.cancelled = False
        paper.gate.set()
        desk.offer("t2")
        desk.say(work_available=work_pb2.WorkAvailable())
        await desk.until(lambda: desk.reports)
        assert [report.task_id for report in desk.reports] == ["t2"]
        assert len(desk.hellos) == 1

    play(tmp_path, scene)


def test_another_tasks_cancellation_leaves_this_one_alone(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        paper.gate.clear()
        desk.offer("t1")
        agent = stage.begin(once=True)
        await desk.until(lambda: paper.started)
        desk.say(cancel_task=work_pb2.CancelTask(task_id="t0"))
        await desk.until(lambda: len(desk.renewals) >= 2)
        paper.gate.set()
        await agent
        assert paper.killed == 0 and [report.task_id for report in desk.reports] == ["t1"]

    play(tmp_path, scene)


def test_a_message_wakes_an_agent_that_found_no_work(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        agent = stage.begin(once=True)
        await desk.until(lambda: "LeaseTask" in desk.calls)
        desk.offer("t1")
        # A kind of message that a later server may send is ignored.
        desk.say()
        desk.say(work_available=work_pb2.WorkAvailable())
        await agent
        assert desk.calls.count("LeaseTask") == 2

    play(tmp_path, scene)


def test_a_newer_session_ends_this_agent_with_a_sentence(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        paper.gate.clear()
        desk.offer("t1")
        agent = stage.begin()
        await desk.until(lambda: paper.started)
        desk.say(superseded=work_pb2.Superseded())
        with pytest.raises(Superseded, match="one device is one agent: stop the other, or give this one"):
            await agent
        assert paper.killed == 1 and len(desk.hellos) == 1

    play(tmp_path, scene)


def test_work_goes_on_while_the_server_is_away_and_is_reported_when_it_is_back(
    tmp_path: Path, paper: PaperChild
) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        paper.gate.clear()
        desk.offer("t1")
        agent = stage.begin(once=True)
        await desk.until(lambda: paper.started)
        await desk.shut()
        paper.gate.set()
        await desk.until(lambda: stage.spooled == ["t1"])
        assert not agent.done() and not desk.reports
        await desk.open()
        await desk.until(lambda: desk.reports)
        (report,) = desk.reports
        assert (report.session_number, report.task_id, report.fence) == (2, "t1", 3)
        assert (paper.started, paper.killed) == (1, 0)
        await desk.until(lambda: not stage.spooled)

    play(tmp_path, scene)


def test_a_task_is_kept_across_a_new_session(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        paper.gate.clear()
        desk.offer("t1")
        stage.begin()
        await desk.until(lambda: paper.started)
        desk.end_stream()
        await desk.until(lambda: any(renewal.session_number == 2 for renewal in desk.renewals))
        paper.gate.set()
        await desk.until(lambda: desk.reports)
        assert (desk.reports[0].session_number, paper.started) == (2, 1)

    play(tmp_path, scene)


def test_a_result_of_an_earlier_life_is_reported_before_new_work(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        (tmp_path / "old").write_bytes(b"result")
        Spool(stage.state / "spool").put("t0", 9, tmp_path / "old")
        desk.offer("t1")
        await stage.begin(once=True)
        assert [(report.task_id, report.fence) for report in desk.reports] == [("t0", 9), ("t1", 3)]
        assert desk.calls.index("ReportTask") < desk.calls.index("LeaseTask")

    play(tmp_path, scene)


@pytest.mark.parametrize("refusal", [LeaseLost("late"), NotFound("no such task"), PermissionDenied("not yours")])
def test_a_result_that_is_refused_for_good_is_dropped(
    tmp_path: Path, paper: PaperChild, refusal: FleetfitError
) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("t1")
        desk.offer("t2")
        desk.errors["ReportTask"].append(refusal)
        stage.begin()
        await desk.until(lambda: desk.reports)
        assert [report.task_id for report in desk.reports] == ["t2"]
        await desk.until(lambda: not stage.spooled)

    play(tmp_path, scene)


@pytest.mark.parametrize("trouble", [Unavailable("starting"), ExhaustedResource("the server's disk is full")])
def test_a_result_that_cannot_be_taken_now_is_reported_later(
    tmp_path: Path, paper: PaperChild, trouble: FleetfitError
) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("t1")
        desk.errors["ReportTask"].extend([trouble, trouble])
        stage.begin()
        await desk.until(lambda: desk.reports)
        assert (desk.reports[0].session_number, paper.started) == (3, 1)

    play(tmp_path, scene)


def test_a_disk_without_room_is_reported_as_such(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("t1", candidate=b"content")
        desk.leases[0].artifacts[0].artifact.size_bytes = 1 << 60
        await stage.begin(once=True)
        result = desk.result()
        assert result.status == Status.MEASUREMENT_STATUS_DISK_FULL
        assert "has no room" in result.message and paper.started == 0

    play(tmp_path, scene)


@pytest.mark.parametrize("fault", ["content that is not for us", "a name that leads elsewhere"])
def test_a_task_that_cannot_be_gathered_is_given_up_and_the_next_is_done(
    tmp_path: Path, paper: PaperChild, fault: str
) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("t1", candidate=b"content")
        if fault == "content that is not for us":
            desk.shelf.contents.clear()
        else:
            desk.leases[0].artifacts[0].name = "../candidate.onnx"
        desk.offer("t2")
        stage.begin()
        await desk.until(lambda: desk.reports)
        assert [report.task_id for report in desk.reports] == ["t2"]
        assert not list(stage.state.rglob("candidate.onnx"))

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "refusal",
    [VersionTooOld("version 0.1 is too old; pip install -U fleetfit"), InternalError("a bug"), Conflict("revoked")],
)
def test_what_trying_again_cannot_help_ends_the_agent(tmp_path: Path, refusal: FleetfitError) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        desk.errors["Hello"].append(refusal)
        with pytest.raises(type(refusal)) as raised:
            await stage.begin()
        assert raised.value.message == refusal.message
        assert desk.calls == ["Hello"]

    play(tmp_path, scene)


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        await desk.shut()
        agent = stage.begin(once=True)
        await asyncio.sleep(0.2)
        assert not agent.done()
        desk.offer("t1")
        await desk.open()
        await agent
        assert [report.task_id for report in desk.reports] == ["t1"]

    play(tmp_path, scene)


def test_a_server_of_another_fleet_is_not_served(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        other = Desk(tmp_path / "other")
        stranger = other.enrol()
        identity = type(stranger)(**{**vars(stranger), "agent_address": desk.address})
        with pytest.raises(PermissionDenied, match="is not the one this device enrolled with"):
            await Agent(identity, stage.state, probe, cache_bytes=1 << 20).run()
        assert not desk.calls

    play(tmp_path, scene)


def test_stopping_the_agent_stops_its_child(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        paper.gate.clear()
        desk.offer("t1")
        agent = stage.begin()
        await desk.until(lambda: paper.started)
        agent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await agent
        assert paper.killed == 1 and not stage.spooled
        assert not list((stage.state / "tasks").iterdir())

    play(tmp_path, scene)


def test_attempts_to_fetch_end_the_session_and_not_the_agent(
    tmp_path: Path, paper: PaperChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_ATTEMPTS", 1)

    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("t1", candidate=b"x" * 5000)
        desk.shelf.break_after = 1000
        desk.offer("t2")
        stage.begin()
        await desk.until(lambda: desk.reports)
        assert [report.task_id for report in desk.reports] == ["t2"]
        assert len(desk.hellos) == 2

    play(tmp_path, scene)
