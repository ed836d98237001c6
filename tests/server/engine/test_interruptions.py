from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fleetfit.core.errors import Conflict
from fleetfit.proto.v1 import jobs_pb2, work_pb2
from fleetfit.server.engine.engine import Settings

from .harness import (
    CANCELLED,
    DONE,
    PRUNED,
    House,
    PaperAgent,
    PaperExecutor,
    outcome,
    request,
    states,
)

pytestmark = pytest.mark.usefixtures("paper_reports")


def test_a_killed_child_is_tried_again_and_not_for_ever(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.kills.update({"pruned": 2, "trained": 99})
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert job.state == DONE
            assert states(job)["one pruned"] == "measured"
            assert states(job)["one trained"] == "failed"
            assert house.executor.runs["trained"] == 3
            detail = next(c.detail for c in job.candidates if c.recipe == "trained")
            assert "killed 3 times" in detail
            assert "resume" in detail
            # Asked again with the cause gone, only what failed is made and measured.
            house.executor.kills.clear()
            await house.engine.resume(job.job_id)
            again = await house.ended(job.job_id)
            assert set(states(again).values()) == {"measured"}
            assert house.executor.runs["pruned"] == 3
            assert set((await house.measurements()).values()) == {1}

    asyncio.run(run())


def test_a_device_that_goes_away_is_waited_for_and_named(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            one, two = await house.furnish("one", "two")
            house.employ(one)
            job = await house.engine.create_job(request(PRUNED), "")
            async with asyncio.timeout(10):
                async for message in house.engine.watch(job.job_id):
                    done = [s for name, s in states(message).items() if name.startswith("one")]
                    if set(done) == {"measured"} and "waiting for two" in message.progress.activity:
                        break
            assert message.state == jobs_pb2.JOB_STATE_RUNNING
            assert "two, which is offline" in message.progress.activity
            await house.engine.fleet.set_paused("two", True)
            assert "two, which is paused" in (await house.engine.job(job.job_id)).progress.activity
            await house.engine.fleet.set_paused("two", False)
            house.employ(two)
            assert set(states(await house.ended(job.job_id)).values()) == {"measured"}

    asyncio.run(run())


def test_a_device_that_stays_away_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path, settings=Settings(method="quick", tick_s=0.05, device_wait_s=0.5)) as house:
            one, _ = await house.furnish("one", "two")
            house.employ(one)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == DONE
            assert states(job) == {
                "one original": "measured",
                "one pruned": "measured",
                "two original": "failed",
                "two pruned": "failed",
            }
            assert "two was away" in job.candidates[2].detail
            assert "resume" in job.candidates[2].detail

    asyncio.run(run())


def test_cancelling_and_going_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.executor.gate.clear()
            job = await house.engine.create_job(request(), "")
            while not house.executor.running:
                await asyncio.sleep(0.01)
            cancelled = await house.engine.cancel(job.job_id)
            assert cancelled.state == CANCELLED
            async with asyncio.timeout(5):
                while house.executor.running:
                    await asyncio.sleep(0.01)
            with pytest.raises(Conflict, match="cancelled already"):
                await house.engine.cancel("last")
            house.executor.gate.set()
            house.employ(agent)
            await asyncio.sleep(0.3)
            assert not agent.measured
            report = await house.report(job.job_id)
            assert all(c["status"] == "skipped" for c in report["devices"][0]["candidates"])
            await house.engine.resume(job.job_id)
            assert set(states(await house.ended(job.job_id)).values()) == {"measured"}

    asyncio.run(run())


def test_a_cancelled_jobs_child_lives_on_for_another_job(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.employ(agent)
            house.executor.gate.clear()
            first, second = [await house.engine.create_job(request(), "") for _ in range(2)]
            while not house.executor.running:
                await asyncio.sleep(0.01)
            await house.engine.cancel(first.job_id)
            house.executor.gate.set()
            assert (await house.ended(second.job_id)).state == DONE
            assert house.executor.runs["original"] == 1

    asyncio.run(run())


def test_a_measurement_in_progress_is_told_to_stop(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            engine = house.engine
            number, _, _ = await engine.fleet.hello(agent.device_id, work_pb2.HelloRequest(snapshot=agent.snapshot))
            messages = engine.fleet.attend(agent.device_id, number)
            await engine.create_job(request(PRUNED), "")
            async with asyncio.timeout(10):
                while (lease := await engine.lease(agent.device_id, number)) is None:
                    await asyncio.sleep(0.05)
            await engine.cancel("last")
            said = []
            while not messages.empty():
                said.append(messages.get_nowait())
            assert [m.cancel_task.task_id for m in said if m.HasField("cancel_task")] == [lease.task_id]
            renewal = work_pb2.RenewLeaseRequest(session_number=number, task_id=lease.task_id, fence=lease.fence)
            assert (await engine.renew(agent.device_id, renewal)).cancelled
            await engine.fleet.leave(agent.device_id, number)

    asyncio.run(run())


class Dead(Exception):
    """Raised to whatever a dead server would not have done any more."""


async def _life(
    folder: Path, executor: PaperExecutor, agents: list[PaperAgent], kind: str = "", number: int = 0
) -> tuple[Counter[str], bool]:
    """One life, which dies after its write of that number of a kind: nothing after it reaches the database.

    How often each kind was written, and whether it died.
    """
    dead = asyncio.Event()
    house = House(folder, executor=executor)
    real, written = house.database.write, Counter[str]()

    async def write(work: Any) -> Any:
        if dead.is_set():
            raise Dead
        # Where it stands in the code.
        which = f"{work.__qualname__} {work.__code__.co_firstlineno}"
        written[which] += 1
        dies = (which, written[which]) == (kind, number)
        result = await real(work)
        if dies:
            dead.set()
            raise Dead
        return result

    house.database.write = write  # type: ignore[method-assign]
    try:
        await house.engine.start()
    except Dead:
        await house.__aexit__()
        return written, True
    try:
        for agent in agents:
            house.employ(agent)
        ending = asyncio.create_task(house.ended("last"))
        dying = asyncio.create_task(dead.wait())
        await asyncio.wait({ending, dying}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ending, dying):
            task.cancel()
        await asyncio.gather(ending, dying, return_exceptions=True)
    finally:
        await house.__aexit__()
    return written, dead.is_set()


async def _undisturbed(folder: Path) -> Any:
    async with House(folder) as house:
        for agent in await house.furnish("one", "two"):
            house.employ(agent)
        job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
        return outcome(job, await house.report(job.job_id))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_after_any_write_a_job_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """The server dies after the first and after the last write of each kind, and is started again on what it left."""

    async def run() -> None:
        expected = await _undisturbed(tmp_path / "calm")
        async with House(tmp_path / "begun") as house:
            begun = await house.furnish("one", "two")
            house.executor.gate.clear()
            await house.engine.create_job(request(PRUNED), "")

        def again(name: str) -> tuple[Path, PaperExecutor, list[PaperAgent]]:
            folder = shutil.copytree(tmp_path / "begun", tmp_path / name)
            agents = [PaperAgent(agent.device_id, agent.snapshot) for agent in begun]
            return folder, PaperExecutor(folder / "paper"), agents

        kinds, _ = await _life(*again("whole"))
        assert len(kinds) > 7 and kinds.total() > 20, "the job was too short to be disturbed everywhere"
        moments = [(kind, number) for kind, count in kinds.items() for number in sorted({1, count})]
        deaths = 0
        for at, (kind, number) in enumerate(moments):
            folder, executor, agents = again(str(at))
            _, died = await _life(folder, executor, agents, kind, number)
            deaths += died
            async with House(folder, executor=executor) as house:
                for agent in agents:
                    house.employ(agent)
                job = await house.ended("last")
                said = f"killed after write {number} of {kind}"
                assert outcome(job, await house.report("last")) == expected, said
                assert set((await house.measurements()).values()) == {1}, said
                assert all(agent.spool == [] for agent in agents)
            assert max(executor.runs.values()) <= 2
            assert sum(executor.runs.values()) <= 3, "only what was being made when it died is made again"
        # How often some are written depends on time.
        assert deaths >= len(kinds)

    asyncio.run(run())
