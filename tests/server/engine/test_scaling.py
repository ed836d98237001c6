"""Scaling in a job: who is measured and when, what the device is told, and a whole job to its report."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.proto.methods import named_method
from fleetfit.proto.v1 import jobs_pb2, snapshot_pb2, work_pb2
from fleetfit.proto.versions import AGENT_CAPABILITIES, SCALES
from fleetfit.server.engine.facts import read_facts
from fleetfit.server.engine.leases import Leases, fail_task
from fleetfit.server.engine.progress import Pace, job_progress
from fleetfit.server.engine.scoring import rescore
from fleetfit.server.engine.states import SCALING
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.summary import MeasurementSummary
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.tables import (
    CandidateRow,
    ConditionRow,
    DeviceRow,
    DeviceSnapshotRow,
    DropsRow,
    JobRow,
    MeasurementRow,
    TaskRow,
)

from ..report.scaled import scaling_result
from .harness import DONE, PRUNED, House, measured, request
from .test_flow import compared, step
from .test_flow import measured as put_measurement

pytestmark = pytest.mark.usefixtures("paper_reports")


@pytest.fixture
def scaled(world: Any) -> Any:
    """A job that asks for scaling, of which all is measured and compared but the curves."""
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, scaling=True)
    world.change(JobRow, world.job, spec=spec.SerializeToString())
    world.change(DeviceRow, world.device, capabilities=list(AGENT_CAPABILITIES))
    for number in (0, 1):
        put_measurement(world, number, "validation")
    compared(world, "validation")
    step(world)
    for number in (0, 1):
        if world.candidates[number] in tasks(world, "test").values():
            put_measurement(world, number, "test")
    compared(world, "test")
    return world


def tasks(world: Any, split: str) -> dict[str, str]:
    """The ids of tasks, and whose they are."""
    query = select(TaskRow.id, TaskRow.candidate_id).where(TaskRow.split == split)
    return {row.id: row.candidate_id for row in world.database.read_now(lambda session: session.execute(query).all())}


def end(world: Any, state: str) -> None:
    for task in tasks(world, SCALING):
        world.change(TaskRow, task, state=state)


def test_curves_come_last_and_the_report_waits_for_them(scaled: Any) -> None:
    wanted = step(scaled)
    assert (wanted.wake, wanted.report) == ({scaled.device}, False)
    asked = set(tasks(scaled, SCALING).values())
    # The figures here choose nothing; the original is always a finalist.
    assert scaled.candidates[0] in asked
    assert not step(scaled).report, "they are being measured"
    end(scaled, "done")
    for _ in range(2):
        assert step(scaled).report
    assert len(tasks(scaled, SCALING)) == len(asked), "nothing is measured again"


def test_curves_that_failed_do_not_hold_the_report_up(scaled: Any) -> None:
    step(scaled)
    end(scaled, "failed")
    assert step(scaled).report
    query = select(CandidateRow.state)
    assert set(scaled.database.read_now(lambda session: session.scalars(query).all())) == {"measured"}


@pytest.mark.parametrize("why", ["unasked", "older agent", "budget", "emulated"])
def test_curves_are_not_asked_for(scaled: Any, why: str) -> None:
    if why == "older agent":
        older = [one for one in AGENT_CAPABILITIES if one != SCALES]
        scaled.change(DeviceRow, scaled.device, capabilities=older)
    elif why == "emulated":
        content = snapshot_pb2.DeviceSnapshot(emulated=True).SerializeToString()
        scaled.change(DeviceSnapshotRow, "snapshot", content=content)
    else:
        spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, scaling=why == "budget", budget_ms=1)
        scaled.change(JobRow, scaled.job, spec=spec.SerializeToString())
    assert step(scaled).report
    assert not tasks(scaled, SCALING)


def test_why_curves_failed_reaches_the_report(scaled: Any) -> None:
    step(scaled)
    why = "the build needs more memory than the device has free; try a smaller build or batch"

    def fail(session: Session) -> tuple[dict[str, str], bool]:
        for task in session.scalars(select(TaskRow).where(TaskRow.split == SCALING)):
            fail_task(session, task, why)
        session.flush()
        (device,) = read_facts(session, session.get_one(JobRow, scaled.job)).devices
        return {c.id: c.no_scaling_because for c in device.candidates}, device.scales

    asked = set(tasks(scaled, SCALING).values())
    found, scales = scaled.database.write_now(fail)
    assert found == {id_: why if id_ in asked else "" for id_ in found} and asked and scales
    assert step(scaled).report


def left_ms(world: Any) -> int:
    def read(session: Session) -> int:
        pace = Pace(measure_s=7.0, scaling_s=100.0)
        return job_progress(session, session.get_one(JobRow, world.job), pace, {}, {world.device: True}).remaining_ms

    left: int = world.database.read_now(read)
    return left


def test_what_is_left_of_a_job_has_its_curves_in_it(scaled: Any) -> None:
    assert left_ms(scaled) == 2 * 100_000, "the chosen build's and its original's are still to come"
    step(scaled)
    (first, *others) = tasks(scaled, SCALING)
    assert left_ms(scaled) == (1 + len(others)) * 100_000
    scaled.change(TaskRow, first, state="leased", progress={"fraction": 0.25})
    assert left_ms(scaled) == 75_000 + len(others) * 100_000
    end(scaled, "done")
    assert left_ms(scaled) == 0


def test_a_job_without_data_is_scaled_too(scaled: Any) -> None:
    scaled.change(JobRow, scaled.job, dataset_id=None)
    assert not step(scaled).report
    assert tasks(scaled, SCALING)


def test_a_device_is_told_to_measure_curves_on_real_samples(scaled: Any, store: ArtifactStore) -> None:
    step(scaled)
    leases = Leases(scaled.database, store, named_method("quick"))
    lease = asyncio.run(leases.lease(scaled.device, 1))
    assert lease is not None
    measure = lease.measure
    assert measure.scaling and not measure.metric_only and not measure.metric and not measure.HasField("baseline")
    assert {named.name for named in lease.artifacts} == {"candidate", "validation.npz"}
    assert (measure.split, measure.data_artifact_name) == ("validation", "validation.npz")
    assert measure.method.scaling_rounds > 1 and not measure.method.sustained_ns


def test_whoever_scores_again_leaves_curves_alone(scaled: Any) -> None:
    """There is nothing in them to score."""
    step(scaled)

    def look(session: Session) -> tuple[set[str], list[str]]:
        job = session.get_one(JobRow, scaled.job)
        curves = session.scalars(select(TaskRow).where(TaskRow.split == SCALING)).all()
        return rescore(session, job, curves), [task.state for task in curves]

    again, states = scaled.database.write_now(look)
    assert again == set() and set(states) == {"waiting"}


def curves_or_measured(lease: work_pb2.TaskLease) -> MeasurementSummary:
    return summarize(scaling_result()) if lease.measure.scaling else measured(lease)


def test_a_whole_job_with_curves(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one", "two"):
                agent.answer = curves_or_measured
                house.employ(agent)
            plan = await house.engine.plan(request(PRUNED, scaling=True))
            assert any("how the chosen build and its original scale, for at most 30" in note for note in plan.notes)
            less = await house.engine.plan(request(PRUNED))
            assert plan.expected_total_ms - less.expected_total_ms == 2 * 30_000
            job = await house.engine.create_job(request(PRUNED, scaling=True), "")
            assert (await house.ended(job.job_id)).state == DONE
            report = await house.report(job.job_id)
            for device in report["devices"]:
                by_recipe = {c["recipe"]: c for c in device["candidates"]}
                assert device["selected"] == by_recipe["pruned"]["variant"]
                assert {name for name, c in by_recipe.items() if c["scaling"]} == {"original", "pruned"}
                assert set(by_recipe["pruned"]["raw"]) == {"measured", "test", "scaling"}
                assert by_recipe["pruned"]["scaling"]["instances"]["points"][-1]["throughput"]["value"] > 0
            counts = await house.measurements()
            assert sum(split == SCALING for _, split in counts) == 4
            assert set(counts.values()) == {1}

            def look(session: Session) -> None:
                rows = session.execute(
                    select(MeasurementRow.split, ConditionRow.content).join(
                        ConditionRow, ConditionRow.id == MeasurementRow.condition_id
                    )
                )
                assert all(bool(content.get("scaling")) == (split == SCALING) for split, content in rows)
                compared_splits = set(session.scalars(select(DropsRow.split)))
                assert compared_splits == {"validation", "test"}

            await house.database.read(look)

    asyncio.run(run())
