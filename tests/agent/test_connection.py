"""What an agent does when its server goes, comes back, or refuses: a real socket, mutual TLS, a scripted server."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import gc
from pathlib import Path

import pytest

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
    UnsupportedHere,
    VersionTooOld,
)
from fleetfit.proto import transfer
from fleetfit.proto.v1 import snapshot_pb2, work_pb2
from fleetfit.server.security import authority

from .desk import Desk, PaperChild
from .stage import Stage, play, probe


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_FIRST_WAIT_S", 0.05)


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


def test_a_device_is_not_probed_at_every_try_to_reach_its_server(tmp_path: Path) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        probed: list[int] = []

        async def counted() -> snapshot_pb2.DeviceSnapshot:
            probed.append(1)
            return await probe()

        agent = Agent(desk.enrol(), stage.state, counted, cache_bytes=1 << 20)
        stage.agent = asyncio.create_task(agent.run())
        for number in (1, 2, 3):
            await desk.until(lambda number=number: len(desk.hellos) == number)
            desk.end_stream()
        assert probed == [1] and desk.hellos[2].snapshot == desk.hellos[0].snapshot

    play(tmp_path, scene)


def test_a_device_is_never_probed_beside_a_measurement(
    tmp_path: Path, paper: PaperChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfit.agent.session._LOOK_EVERY_S", 0.0)

    async def scene(stage: Stage, desk: Desk) -> None:
        during: list[int] = []

        async def watched() -> snapshot_pb2.DeviceSnapshot:
            during.append(paper.started - len(desk.reports))
            return await probe()

        paper.gate.clear()
        desk.offer("t1")
        agent = Agent(desk.enrol(), stage.state, watched, cache_bytes=1 << 20)
        stage.agent = asyncio.create_task(agent.run())
        await desk.until(lambda: paper.started)
        desk.end_stream()
        await desk.until(lambda: any(renewal.session_number == 2 for renewal in desk.renewals))
        assert during == [0] and desk.hellos[1].snapshot == desk.hellos[0].snapshot
        paper.gate.set()
        await desk.until(lambda: desk.reports)
        desk.end_stream()
        await desk.until(lambda: len(desk.hellos) == 3)
        assert during == [0, 0]

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


@pytest.mark.parametrize(
    "trouble", [Unavailable("starting"), ExhaustedResource("the server's disk is full"), InternalError("a bug")]
)
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


@pytest.mark.parametrize(
    "refusal",
    [VersionTooOld("version 0.1 is too old; pip install -U fleetfit"), Conflict("revoked")],
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
        identity = dataclasses.replace(other.enrol(), agent_address=desk.address)
        with pytest.raises(PermissionDenied, match="is not the one this device enrolled with"):
            await Agent(identity, stage.state, probe, cache_bytes=1 << 20).run()
        assert not desk.calls

    play(tmp_path, scene)


def test_a_clock_by_which_the_server_has_no_certificate_is_said_and_waited_for(
    tmp_path: Path, paper: PaperChild, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        await desk.shut()
        with monkeypatch.context() as patch:
            # A certificate that ended yesterday is what a clock that runs ahead makes of any.
            patch.setattr(authority, "_SERVER_LIFE", -datetime.timedelta(days=1))
            patch.setattr(authority, "_CLOCK_SLACK", datetime.timedelta(days=5))
            desk.authority = authority.Authority(tmp_path / "older")
            await desk.open()
        desk.offer("t1")
        agent = stage.begin(once=True)
        await desk.until(lambda: "set the clock, here or there" in caplog.text)
        assert not agent.done() and not desk.calls
        await desk.shut()
        await desk.open()
        await agent
        assert [report.task_id for report in desk.reports] == ["t1"]

    play(tmp_path, scene)


def test_a_connection_that_breaks_under_two_calls_at_once_leaves_no_error_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(*_: object) -> None:
        raise Unavailable("the line is cut")

    monkeypatch.setattr(Agent, "_attend", breaks)
    monkeypatch.setattr(Agent, "_work", breaks)

    async def scene(stage: Stage, desk: Desk) -> None:
        agent = stage.begin()
        await desk.until(lambda: len(desk.hellos) == 3)
        assert not agent.done()

    play(tmp_path, scene)
    gc.collect()
    assert "the line is cut" in caplog.text and "never retrieved" not in caplog.text


def test_a_device_that_cannot_be_looked_at_again_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfit.agent.session._LOOK_EVERY_S", 0.0)

    async def scene(stage: Stage, desk: Desk) -> None:
        probed: list[int] = []

        async def once() -> snapshot_pb2.DeviceSnapshot:
            probed.append(1)
            if len(probed) > 1:
                raise UnsupportedHere("this device cannot be probed (out_of_memory: it said nothing)")
            return await probe()

        stage.agent = asyncio.create_task(Agent(desk.enrol(), stage.state, once, cache_bytes=1 << 20).run())
        await desk.until(lambda: len(desk.hellos) == 1)
        desk.end_stream()
        await desk.until(lambda: len(desk.hellos) == 2)
        assert desk.hellos[0].snapshot == desk.hellos[1].snapshot and probed == [1, 1]

    play(tmp_path, scene)


def test_a_folder_that_cannot_be_used_is_said_and_waited_for(
    tmp_path: Path, paper: PaperChild, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage, desk: Desk) -> None:
        agent = stage.begin()
        await desk.until(lambda: desk.calls)
        tasks = stage.state / "tasks"
        tasks.rmdir()
        tasks.write_text("a disk that went away")
        desk.offer("t1")
        desk.say(work_available=work_pb2.WorkAvailable())
        await desk.until(lambda: "the agent cannot use its folder" in caplog.text)
        assert not agent.done()
        tasks.unlink()
        tasks.mkdir()
        desk.offer("t2")
        await desk.until(lambda: desk.reports)
        assert [report.task_id for report in desk.reports] == ["t2"]

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
    monkeypatch.setattr(work, "_LINK_PATIENCE_S", -1.0)

    async def scene(stage: Stage, desk: Desk) -> None:
        desk.offer("t1", candidate=b"x" * 5000)
        desk.shelf.break_after = 1000
        desk.offer("t2")
        stage.begin()
        await desk.until(lambda: desk.reports)
        assert [report.task_id for report in desk.reports] == ["t2"]
        assert len(desk.hellos) == 2

    play(tmp_path, scene)
