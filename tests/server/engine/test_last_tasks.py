"""Profiles in a job: who is profiled and when, what the device is told, and a whole job to its report."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.proto.methods import named_method
from fleetfit.proto.v1 import jobs_pb2, snapshot_pb2, work_pb2
from fleetfit.proto.versions import AGENT_CAPABILITIES, PROFILES
from fleetfit.server.engine.leases import Leases
from fleetfit.server.engine.scoring import rescore
from fleetfit.server.engine.states import PROFILE, SCALING
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.summary import MeasurementSummary
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.tables import (
    CandidateRow,
    ConditionRow,
    DeviceRow,
    DeviceSnapshotRow,
    JobRow,
    MeasurementRow,
    TaskRow,
)

from ..report.profiled import profile_result
from ..report.scaled import scaling_result
from .harness import PRUNED, House, measured, request
from .test_flow import compared, step
from .test_flow import measured as put_measurement
from .test_scaling import left_ms, tasks

pytestmark = pytest.mark.usefixtures("paper_reports")


@pytest.fixture
def profiled(world: Any) -> Any:
    """A job that asks for curves and profiles, of which all else is measured and compared."""
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, scaling=True, profile=True)
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


def end(world: Any, kind: str, state: str) -> None:
    for task in tasks(world, kind):
        world.change(TaskRow, task, state=state)


def test_profiles_come_behind_curves_and_the_report_waits_for_them(profiled: Any) -> None:
    step(profiled)
    assert tasks(profiled, SCALING) and not tasks(profiled, PROFILE), "nothing is profiled before all is timed"
    end(profiled, SCALING, "done")
    wanted = step(profiled)
    assert (wanted.wake, wanted.report) == ({profiled.device}, False)
    assert set(tasks(profiled, PROFILE).values()) == set(tasks(profiled, SCALING).values())
    assert not step(profiled).report, "they are being measured"
    end(profiled, PROFILE, "done")
    for _ in range(2):
        assert step(profiled).report
    assert len(tasks(profiled, PROFILE)) == len(tasks(profiled, SCALING)), "nothing is measured again"


def test_profiles_that_failed_do_not_hold_the_report_up(profiled: Any) -> None:
    step(profiled)
    end(profiled, SCALING, "failed")
    step(profiled)
    end(profiled, PROFILE, "failed")
    assert step(profiled).report
    query = select(CandidateRow.state)
    assert set(profiled.database.read_now(lambda session: session.scalars(query).all())) == {"measured"}


@pytest.mark.parametrize("why", ["unasked", "older agent", "budget", "emulated"])
def test_profiles_are_not_asked_for(profiled: Any, why: str) -> None:
    profile = why != "unasked"
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, profile=profile, budget_ms=1 if why == "budget" else 0)
    profiled.change(JobRow, profiled.job, spec=spec.SerializeToString())
    if why == "older agent":
        older = [one for one in AGENT_CAPABILITIES if one != PROFILES]
        profiled.change(DeviceRow, profiled.device, capabilities=older)
    elif why == "emulated":
        content = snapshot_pb2.DeviceSnapshot(emulated=True).SerializeToString()
        profiled.change(DeviceSnapshotRow, "snapshot", content=content)
    assert step(profiled).report
    assert not tasks(profiled, PROFILE)


def test_what_is_left_of_a_job_has_its_profiles_in_it(profiled: Any) -> None:
    assert left_ms(profiled) == 2 * 100_000 + 2 * 8_000, "the chosen build's and its original's are still to come"
    step(profiled)
    end(profiled, SCALING, "done")
    step(profiled)
    assert left_ms(profiled) == len(tasks(profiled, PROFILE)) * 8_000
    end(profiled, PROFILE, "done")
    assert left_ms(profiled) == 0


def test_a_device_is_told_to_profile_on_real_samples(profiled: Any, store: ArtifactStore) -> None:
    step(profiled)
    end(profiled, SCALING, "done")
    step(profiled)
    leases = Leases(profiled.database, store, named_method("quick"))
    lease = asyncio.run(leases.lease(profiled.device, 1))
    assert lease is not None
    measure = lease.measure
    assert measure.profile and not measure.scaling and not measure.metric_only
    assert not measure.metric and not measure.HasField("baseline")
    assert {named.name for named in lease.artifacts} == {"candidate", "validation.npz"}
    assert (measure.split, measure.data_artifact_name) == ("validation", "validation.npz")


def test_whoever_scores_again_leaves_profiles_alone(profiled: Any) -> None:
    """There is nothing in them to score."""
    step(profiled)
    end(profiled, SCALING, "done")
    step(profiled)

    def look(session: Session) -> tuple[set[str], list[str]]:
        job = session.get_one(JobRow, profiled.job)
        found = session.scalars(select(TaskRow).where(TaskRow.split == PROFILE)).all()
        return rescore(session, job, found), [task.state for task in found]

    again, states = profiled.database.write_now(look)
    assert again == set() and set(states) == {"waiting"}


def answered(lease: work_pb2.TaskLease) -> MeasurementSummary:
    if lease.measure.profile:
        return summarize(profile_result())
    return summarize(scaling_result()) if lease.measure.scaling else measured(lease)


def test_a_whole_job_with_profiles(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            agent.answer = answered
            house.employ(agent)
            plan = await house.engine.plan(request(PRUNED, profile=True))
            assert any("the time of each operator of the chosen build and its original" in note for note in plan.notes)
            less = await house.engine.plan(request(PRUNED))
            assert plan.expected_total_ms - less.expected_total_ms == 2 * 8_000
            job = await house.engine.create_job(request(PRUNED, profile=True), "")
            assert (await house.ended(job.job_id)).state == jobs_pb2.JOB_STATE_DONE
            (device,) = (await house.report(job.job_id))["devices"]
            by_recipe = {c["recipe"]: c for c in device["candidates"]}
            assert {name for name, c in by_recipe.items() if c["profile"]} == {"original", "pruned"}
            assert set(by_recipe["pruned"]["raw"]) == {"measured", "test", "profile"}
            assert by_recipe["pruned"]["profile"]["operators"][0]["operator"] == "Conv"

            def look(session: Session) -> None:
                rows = session.execute(
                    select(MeasurementRow.split, ConditionRow.content).join(
                        ConditionRow, ConditionRow.id == MeasurementRow.condition_id
                    )
                )
                # What a profiler slows is under no condition that a figure is compared in.
                assert all(bool(content.get("profile")) == (split == PROFILE) for split, content in rows)

            await house.database.read(look)

    asyncio.run(run())
