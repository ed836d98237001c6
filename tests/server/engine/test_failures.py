from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import TaskError
from fleetfit.core.errors import Conflict, ExhaustedResource, NotFound
from fleetfit.proto.v1 import models_pb2, work_pb2
from fleetfit.server.engine import compressing, engine
from fleetfit.server.engine.engine import Settings
from fleetfit.server.engine.ingestion import Ingestion
from fleetfit.server.report.summary import MeasurementSummary
from fleetfit.server.storage.tables import CandidateRow, TaskRow

from .harness import (
    ALL_RECIPES,
    CUDA,
    DONE,
    FAILED,
    PRUNED,
    House,
    measured,
    paper_child,
    request,
    states,
)

pytestmark = pytest.mark.usefixtures("paper_reports")


def test_jobs_that_cannot_be_advanced_do_not_hold_the_others_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            broken: set[str] = set()

            def advance(session: Any, job: Any) -> Any:
                if job.id in broken:
                    raise ZeroDivisionError
                return real(session, job)

            real = engine.advance
            monkeypatch.setattr(engine, "advance", advance)
            broken.update([(await house.engine.create_job(request(PRUNED), "")).job_id for _ in range(4)])
            sound = await house.engine.create_job(request(PRUNED), "")
            house.employ(agent)
            assert (await house.ended(sound.job_id)).state == DONE

    asyncio.run(run())


def test_a_job_that_can_never_be_advanced_fails_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.employ(agent)
            real = engine.build_report

            def broken(facts: Any) -> Any:
                raise ZeroDivisionError

            monkeypatch.setattr(engine, "build_report", broken)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == FAILED
            assert "a bug of the server's" in job.reason and "resume the job" in job.reason
            monkeypatch.setattr(engine, "build_report", real)
            await house.engine.resume(job.job_id)
            assert (await house.ended(job.job_id)).state == DONE

    asyncio.run(run())


def test_a_bug_while_compressing_fails_the_candidate_and_nothing_waits_for_ever(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.raises["pruned"] = ZeroDivisionError()
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert states(job)["one pruned"] == "failed"
            assert "a bug of the server's" in next(c.detail for c in job.candidates if c.recipe == "pruned")
            assert states(job)["one trained"] == "measured"

    asyncio.run(run())


def test_an_end_that_cannot_be_written_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            real, full = compressing._end, 2

            def end(*given: Any) -> None:
                nonlocal full
                full -= 1
                if full >= 0:
                    raise ExhaustedResource("the server's disk is full")
                real(*given)

            monkeypatch.setattr(compressing, "_end", end)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert set(states(job).values()) == {"measured"}

    asyncio.run(run())


def test_what_another_device_trained_bears_no_name(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path, settings=Settings(method="quick", tick_s=0.05, cuda=CUDA)) as house:
            house.employ((await house.furnish("one"))[0])
            house.executor.cuda = CUDA.model_copy(update={"driver": "580.1"})
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert {c.recipe for c in job.candidates if c.state == "failed"} == {"trained", "original-retrained"}
            (detail,) = {c.detail for c in job.candidates if c.recipe == "trained"}
            assert "driver 580.1" in detail and CUDA.driver in detail and "restart the server" in detail

    asyncio.run(run())


@pytest.mark.parametrize("name", ["original", "trained"])
def test_a_recipe_that_fails_is_a_failed_candidate(tmp_path: Path, name: str) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.errors[name] = TaskError(code="INVALID_RECIPE", message="the layer would be empty")
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert job.state == DONE
            failed = {c.recipe: c.detail for c in job.candidates if c.state == "failed"}
            assert "the layer would be empty" in failed[name]
            assert set(failed) == (set(ALL_RECIPES) if name == "original" else {name})
            assert house.executor.runs[name] == 1

    asyncio.run(run())


def test_a_full_disk_fails_cleanly_and_the_job_can_be_resumed(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.raises["pruned"] = OSError(errno.ENOSPC, "No space left on device")
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert states(job)["one pruned"] == "failed"
            assert "No space left on device" in next(c.detail for c in job.candidates if c.recipe == "pruned")
            house.executor.raises.clear()
            await house.engine.resume("last")
            assert states(await house.ended(job.job_id))["one pruned"] == "measured"
            with pytest.raises(Conflict, match="nothing to resume"):
                await house.engine.resume("last")

    asyncio.run(run())


def test_a_build_the_device_cannot_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")

            def answer(lease: work_pb2.TaskLease) -> MeasurementSummary:
                if lease.measure.candidate.build_id == lease.measure.baseline.build_id or lease.measure.metric_only:
                    return measured(lease)
                return MeasurementSummary(status="out_of_memory", message="")

            agent.answer = answer
            house.employ(agent)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == DONE
            assert states(job) == {"one original": "measured", "one pruned": "failed"}
            assert "out of memory" in next(c.detail for c in job.candidates if c.state == "failed")
            report = await house.report(job.job_id)
            assert report["devices"][0]["selected"] is None
            with pytest.raises(Conflict, match="nothing was selected"):
                await house.engine.build("last", "one", "")

    asyncio.run(run())


def test_a_result_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.employ(agent)

            async def nonsense(self: Ingestion, module: str, source: Path) -> str:
                return "{" if module == "analyse" else await paper_child(self, module, source)

            monkeypatch.setattr(Ingestion, "_child", nonsense)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == DONE
            assert set(states(job).values()) == {"failed"}
            assert "cannot be read" in job.candidates[0].detail

    asyncio.run(run())


def test_a_result_that_is_gone_fails_its_candidate_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            real = house.engine.leases.report

            def is_recipe(session: Session, task_id: str) -> bool:
                task = session.get_one(TaskRow, task_id)
                return session.get_one(CandidateRow, task.candidate_id).role == "recipe"

            async def report(device_id: str, taken: work_pb2.ReportTaskRequest) -> bool:
                # Asked for before: afterwards every wait gives the engine time to read the result.
                recipe = await house.database.read(lambda session: is_recipe(session, taken.task_id))
                first = await real(device_id, taken)
                if recipe:
                    house.store.path(taken.result.sha256).unlink()
                return first

            house.engine.leases.report = report  # type: ignore[method-assign]
            house.employ(agent)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert sorted(states(job).values()) == ["failed", "measured"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), NotFound("it is gone"), ZeroDivisionError()]
)
def test_what_cannot_be_checked_is_refused_and_nothing_waits_behind_it(tmp_path: Path, error: Exception) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            await house.furnish()
            model = await house.upload(b"another model")
            house.executor.raises["intake_model"] = error
            said = [message async for message in house.engine.push_model("other", model.sha256, "pt2")]
            assert said[-1].model.state == models_pb2.INTAKE_STATE_REFUSED
            assert said[-1].model.refusal
            house.executor.raises.clear()
            said = [message async for message in house.engine.push_model("other", model.sha256, "pt2")]
            assert said[-1].model.state == models_pb2.INTAKE_STATE_ACCEPTED

    asyncio.run(run())
