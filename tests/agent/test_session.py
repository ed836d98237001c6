"""What an agent does with the tasks that a server hands out: a real socket, mutual TLS, a script of what the server does."""

from __future__ import annotations

from pathlib import Path

import pytest

import fleetfit
from fleetfit.core.errors import LeaseLost, NotFound
from fleetfit.proto.v1 import measurement_pb2, work_pb2
from fleetfit.proto.versions import AGENT_CAPABILITIES, PROTOCOL_VERSION

from ..runtimes.builds import affine
from .desk import Desk, PaperChild
from .measuring.tasks import QUICK, build_ref
from .stage import Stage, play

Status = measurement_pb2.MeasurementStatus


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


def test_a_health_check_is_not_the_one_task_and_a_life_has_one_name(tmp_path: Path, paper: PaperChild) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("check", measurement_pb2.MeasureTask(health=True))
        agent = stage.begin(once=True)
        await desk.until(lambda: desk.reports)
        # The connection is lost, not the process.
        desk.end_stream()
        await desk.until(lambda: len(desk.hellos) == 2)
        desk.offer("t1", measurement_pb2.MeasureTask())
        desk.say(work_available=work_pb2.WorkAvailable())
        await agent
        assert [report.task_id for report in desk.reports] == ["check", "t1"]
        assert desk.hellos[0].life == desk.hellos[1].life != ""

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
