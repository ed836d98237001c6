from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from fleetfit.core.errors import Conflict
from fleetfit.proto.v1 import devices_pb2, snapshot_pb2, work_pb2
from fleetfit.proto.versions import AGENT_CAPABILITIES, CHECKS_HEALTH
from fleetfit.server.engine.engine import Settings
from fleetfit.server.engine.ingestion import Ingestion
from fleetfit.server.engine.verdicts import FEWEST
from fleetfit.server.report.summary import Figure, Latency, MeasurementSummary
from fleetfit.server.storage.tables import DeviceRow, HealthCheckRow

from .harness import House, PaperAgent, measured, paper_child, request

pytestmark = pytest.mark.usefixtures("paper_reports")

CONDITION = {"power_mode": "15W", "governor": "schedutil", "kernel": "5.15", "threads": "1", "boot_id": "1"}
SETTINGS = Settings(method="quick", tick_s=0.05, health_every_s=3600.0)


class Ward:
    """One device whose golden model takes `p50` milliseconds, with what the server thinks of it."""

    def __init__(self, house: House, agent: PaperAgent) -> None:
        self.house, self.agent = house, agent
        self.p50 = 1.0
        self.more: dict[str, Any] = {}
        self.condition = dict(CONDITION)
        agent.answer = self.answer
        agent.life = "first"

    def answer(self, lease: work_pb2.TaskLease) -> MeasurementSummary:
        if not lease.measure.health:
            return measured(lease)
        assert {named.name for named in lease.artifacts} == {"golden", "golden.npz"}
        assert lease.measure.threads == 1 and lease.measure.return_outputs and not lease.measure.job_id
        p50 = Figure(value=self.p50, low=self.p50 * 0.99, high=self.p50 * 1.01)
        latency = Latency(
            p50_ms=p50, p95_ms=None, p99_ms=None, samples=300, processes=5, load_ms=1.0, first_ms=1.0, steady=True
        )
        known = {"status": "measured", "latency": latency, "condition": self.condition, "runtime": "onnxruntime"}
        return MeasurementSummary.model_validate(known | {"runtime_version": "1", "method_version": "1"} | self.more)

    async def device(self) -> devices_pb2.Device:
        return await self.house.engine.fleet.get("pi")

    async def ended(self, checks: int) -> devices_pb2.Device:
        """The device once so many checks were judged, and no other follows at once."""
        judged = select(func.count()).select_from(HealthCheckRow).where(HealthCheckRow.verdict != "")

        async def count() -> int:
            return await self.house.database.read(lambda session: session.scalars(judged).one())

        async with asyncio.timeout(90):
            while await count() < checks:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert (await count(), self.agent.checks) == (checks, checks)
        return await self.device()

    async def check(self, times: int = 1) -> devices_pb2.Device:
        """The device after so many more checks that a person asked for."""
        found = await self.device()
        for _ in range(times):
            before = self.agent.checks
            await self.house.engine.fleet.check("pi")
            found = await self.ended(before + 1)
        return found

    async def activity(self, job: str) -> str:
        return (await self.house.engine.job(job)).progress.activity

    async def events(self) -> list[str]:
        """What happened, the oldest first."""
        return [event.text for event in (await self.device()).events][::-1]


def visit(tmp_path: Path, scenario: Callable[[Ward], Awaitable[None]], settings: Settings = SETTINGS) -> None:
    async def run() -> None:
        async with House(tmp_path, settings=settings) as house:
            (agent,) = await house.furnish("pi")
            await scenario(Ward(house, agent))

    asyncio.run(run())


async def grown(ward: Ward) -> None:
    """A device at work, with a history."""
    ward.house.employ(ward.agent)
    await ward.ended(1)
    await ward.check(FEWEST - 1)


def test_an_agent_that_starts_is_checked_before_its_work_and_not_again_when_it_only_comes_back(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        job = await ward.house.engine.create_job(request(), "job")
        working = ward.house.employ(ward.agent)
        await ward.house.ended(job.job_id, 90)
        found = await ward.device()
        assert (ward.agent.checks, found.last_check.verdict, found.last_check.outputs_right) == (1, "new", True)
        assert found.last_check.condition["power_mode"] == "15W" and "boot_id" not in found.last_check.condition
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        working = ward.house.employ(ward.agent)
        job = await ward.house.engine.create_job(request(seed=2), "another")
        await ward.house.ended(job.job_id, 90)
        assert ward.agent.checks == 1, "the same process came back"
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        ward.agent.life = "second"
        ward.house.employ(ward.agent)
        await ward.ended(2)

    visit(tmp_path, scenario)


def test_a_slower_device_is_checked_twice_set_aside_and_comes_back_by_itself(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        await grown(ward)
        ward.p50 = 1.5
        await ward.house.engine.fleet.check("pi")
        found = await ward.ended(FEWEST + 2)
        assert found.set_aside.startswith("it is 50 % slower than before: a call takes 1.50 ms, where 0.9")
        assert found.last_check.verdict == "failed" and found.last_check.history == FEWEST
        failed, aside = await ward.events()
        assert failed.startswith("a health check failed and is repeated: it is 50 %") and aside.startswith(
            "set aside: it is"
        )
        job = await ward.house.engine.create_job(request(), "job")
        async with asyncio.timeout(90):
            while "waiting for pi, which is set aside (it is 50 % slower" not in await ward.activity(job.job_id):
                await asyncio.sleep(0.02)
        assert not ward.agent.measured
        ward.p50 = 1.01
        found = await ward.check()
        assert (found.set_aside, found.last_check.verdict) == ("", "passed")
        assert (await ward.events())[-1] == "passes again, and takes work again"
        await ward.house.ended(job.job_id, 90)
        # What failed is no part of its history.
        assert (await ward.check()).last_check.history == FEWEST + 1

    visit(tmp_path, scenario)


def test_one_slow_check_alone_is_forgiven(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        await grown(ward)
        slow = iter((1.5, 1.0))
        steady = ward.agent.answer

        def once(lease: work_pb2.TaskLease) -> MeasurementSummary:
            ward.p50 = next(slow, 1.0)
            return steady(lease)

        ward.agent.answer = once
        await ward.house.engine.fleet.check("pi")
        found = await ward.ended(FEWEST + 2)
        assert (found.set_aside, found.last_check.verdict) == ("", "passed")
        (said,) = await ward.events()
        assert said.startswith("a health check failed and is repeated")

    visit(tmp_path, scenario)


def test_wrong_outputs_set_a_device_aside_at_once_until_a_person_clears_it(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        ward.more = {"notes": ["its outputs are wrong: 3 of 64"]}
        ward.house.employ(ward.agent)
        found = await ward.ended(1)
        assert found.set_aside == "its outputs are wrong: 3 of 64" and not found.last_check.outputs_right
        job = await ward.house.engine.create_job(request(), "job")
        async with asyncio.timeout(90):
            while "which is set aside" not in await ward.activity(job.job_id):
                await asyncio.sleep(0.02)
        assert not ward.agent.measured
        cleared = await ward.house.engine.fleet.clear("pi")
        assert not cleared.set_aside and cleared.events[0].text == "cleared by a person"
        await ward.house.ended(job.job_id, 90)
        assert ward.agent.checks == 1, "a person's word holds until the next check is due"
        with pytest.raises(Conflict, match="pi is not set aside"):
            await ward.house.engine.fleet.clear("pi")

    visit(tmp_path, scenario)


def test_a_new_power_mode_is_an_event_and_a_history_of_its_own(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        await grown(ward)
        ward.condition["power_mode"], ward.p50 = "MAXN", 0.4
        ward.condition["boot_id"] = "2"
        found = await ward.check()
        assert (found.set_aside, found.last_check.verdict, found.last_check.history) == ("", "new", 0)
        assert await ward.events() == ["15W -> MAXN"]
        # Back again: the older history counts, and what is slow in it is slow.
        ward.condition["power_mode"], ward.p50 = "15W", 1.0
        found = await ward.check()
        assert (found.last_check.verdict, found.last_check.history) == ("passed", FEWEST)
        assert await ward.events() == ["15W -> MAXN", "MAXN -> 15W"]

    visit(tmp_path, scenario)


def test_a_throttled_check_is_repeated_once_and_held_against_nobody(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        await grown(ward)
        ward.p50, ward.more = 3.0, {"trust": "throttled"}
        await ward.house.engine.fleet.check("pi")
        found = await ward.ended(FEWEST + 2)
        assert (found.set_aside, found.last_check.verdict, found.last_check.trust) == ("", "unclear", "throttled")
        assert found.last_check.why == "the device throttled meanwhile"
        ward.p50, ward.more = 1.0, {}
        assert (await ward.check()).last_check.history == FEWEST

    visit(tmp_path, scenario)


@pytest.mark.parametrize("status", ["crashed", "refused"])
def test_a_golden_model_that_cannot_be_measured_is_the_devices_fault_or_its_owners(tmp_path: Path, status: str) -> None:
    async def scenario(ward: Ward) -> None:
        ward.more = {"status": status, "message": "it says why", "latency": None}
        ward.house.employ(ward.agent)
        found = await ward.ended(2)
        assert found.last_check.why == "the golden model could not be measured: it says why"
        assert bool(found.set_aside) is (status == "crashed")

    visit(tmp_path, scenario)


def test_what_the_server_cannot_read_is_held_against_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: Ingestion, module: str, source: Path) -> str:
        return "{" if module == "golden" else await paper_child(self, module, source)

    monkeypatch.setattr(Ingestion, "_child", broken)

    async def scenario(ward: Ward) -> None:
        ward.house.employ(ward.agent)
        found = await ward.ended(2)
        assert (found.set_aside, found.last_check.verdict) == ("", "unclear")
        assert found.last_check.why.endswith("its result cannot be read")

    visit(tmp_path, scenario)


def test_a_history_can_be_forgotten(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        await grown(ward)
        ward.p50 = 1.5
        await ward.house.engine.fleet.check("pi")
        assert (await ward.ended(FEWEST + 2)).set_aside
        await ward.house.engine.fleet.clear("pi", forget_history=True)
        found = await ward.check()
        assert (found.last_check.verdict, found.last_check.history) == ("new", 0)
        assert "its history was forgotten by a person, and begins anew" in await ward.events()

    visit(tmp_path, scenario)


def test_a_device_that_dies_of_its_checks_is_set_aside(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        fleet, engine = ward.house.engine.fleet, ward.house.engine
        for life in range(20):
            hello = work_pb2.HelloRequest(
                agent_version="1", snapshot=ward.agent.snapshot, capabilities=AGENT_CAPABILITIES, life=str(life)
            )
            session, _, _ = await fleet.hello(ward.agent.device_id, hello)
            if await engine.lease(ward.agent.device_id, session) is None:
                break
        found = await ward.device()
        assert found.set_aside == "it began 5 health checks and came to no result"

    visit(tmp_path, scenario)


def test_no_check_while_paused_or_outside_the_hours(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        fleet = ward.house.engine.fleet
        await fleet.set_paused("pi", True)
        ward.house.employ(ward.agent)
        await fleet.check("pi")
        await asyncio.sleep(0.3)
        assert ward.agent.checks == 0
        await fleet.set_paused("pi", False)
        await ward.ended(1)

    visit(tmp_path, scenario)


def test_a_server_that_wants_none_checks_only_where_it_is_asked(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        ward.house.employ(ward.agent)
        await asyncio.sleep(0.3)
        assert ward.agent.checks == 0
        assert "--health-every 0" in (await ward.device()).no_check_because
        assert (await ward.check()).last_check.verdict == "new"

    visit(tmp_path, scenario, Settings(method="quick", tick_s=0.05))


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"capabilities": [name for name in AGENT_CAPABILITIES if name != CHECKS_HEALTH]}, "its agent (1) knows no health checks"),
        ({"emulated": True}, "it is emulated"),
        ({"runtime": "torch"}, "no runtime on it loads the golden model"),
    ],
)  # fmt: skip
def test_who_cannot_be_checked_says_why_and_works_all_the_same(
    tmp_path: Path, change: dict[str, Any], because: str
) -> None:
    async def scenario(ward: Ward) -> None:
        snapshot = snapshot_pb2.DeviceSnapshot()
        snapshot.CopyFrom(ward.agent.snapshot)
        snapshot.emulated = change.get("emulated", False)
        snapshot.runtimes[0].name = change.get("runtime", "onnxruntime")
        hello = work_pb2.HelloRequest(
            agent_version="1", snapshot=snapshot, capabilities=change.get("capabilities", AGENT_CAPABILITIES), life="x"
        )
        session, _, _ = await ward.house.engine.fleet.hello(ward.agent.device_id, hello)
        assert await ward.house.engine.lease(ward.agent.device_id, session) is None
        assert because in (await ward.device()).no_check_because
        with pytest.raises(Conflict, match="pi cannot be checked: "):
            await ward.house.engine.fleet.check("pi")

    visit(tmp_path, scenario)


@pytest.mark.parametrize(
    ("runtimes", "chosen"),
    [(("ncnn",), "ncnn"), (("openvino", "ncnn"), "openvino"), (("tensorrt", "onnxruntime"), "onnxruntime")],
)
def test_another_runtime_stands_in_for_onnx_runtime(tmp_path: Path, runtimes: tuple[str, ...], chosen: str) -> None:
    async def run() -> None:
        async with House(tmp_path, settings=SETTINGS) as house:
            (agent,) = await house.furnish("pi", runtimes=runtimes)
            ward = Ward(house, agent)
            ward.more = {"runtime": chosen}
            house.employ(agent)
            found = await ward.ended(1)
            assert (found.last_check.runtime, found.last_check.verdict) == (chosen, "new")

    asyncio.run(run())


def test_a_check_that_was_lost_is_handed_out_again(tmp_path: Path) -> None:
    async def scenario(ward: Ward) -> None:
        fleet, engine = ward.house.engine.fleet, ward.house.engine
        hello = work_pb2.HelloRequest(
            agent_version="1", snapshot=ward.agent.snapshot, capabilities=AGENT_CAPABILITIES, life="first"
        )
        session, _, _ = await fleet.hello(ward.agent.device_id, hello)
        lost = await engine.lease(ward.agent.device_id, session)
        assert lost is not None and lost.measure.health
        async with asyncio.timeout(60):
            while (await ward.device()).current_task_id:
                await asyncio.sleep(0.05)
        ward.house.employ(ward.agent)
        assert (await ward.ended(1)).last_check.check_id == lost.task_id

    visit(tmp_path, scenario, replace(SETTINGS, lease_ms=300))


def test_a_restarted_server_knows_who_is_set_aside(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path, settings=SETTINGS) as house:
            (agent,) = await house.furnish("pi")
            ward = Ward(house, agent)
            ward.more = {"notes": ["its outputs are wrong"]}
            house.employ(agent)
            await ward.ended(1)
        async with House(tmp_path, settings=SETTINGS) as house:
            (found,) = await house.engine.fleet.all()
            assert found.set_aside == "its outputs are wrong" and not found.events, "lists stay small"
            row = await house.database.read(lambda session: session.get_one(DeviceRow, found.device_id).check_wanted)
            assert not row

    asyncio.run(run())
