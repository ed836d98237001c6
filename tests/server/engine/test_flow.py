from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.proto.v1 import jobs_pb2
from fleetfit.server.engine.flow import Wanted, advance
from fleetfit.server.report.summary import Drops, Figure, MeasurementSummary, MetricSummary
from fleetfit.server.storage.ids import new_id
from fleetfit.server.storage.tables import (
    BuildRow,
    CandidateRow,
    ConditionRow,
    DropsRow,
    JobRow,
    MeasurementRow,
    TaskRow,
    VariantRow,
)


@pytest.fixture
def young(world: Any) -> Any:
    """The same job before anything was compressed."""

    def write(session: Session) -> None:
        for task in session.scalars(select(TaskRow)):
            session.delete(task)
        for row in session.scalars(select(CandidateRow)):
            row.state = "waiting"
        for variant in session.scalars(select(VariantRow)):
            variant.state = "waiting"

    world.database.write_now(write)
    return world


@pytest.fixture(autouse=True)
def chooses_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selection has tests of its own; here it takes the first recipe that was measured."""

    def choose(_: Any, device: Any) -> Any:
        measured = (c.id for c in device.candidates if c.role == "recipe" and c.state == "measured")
        return SimpleNamespace(selected=next(measured, None))

    monkeypatch.setattr("fleetfit.server.engine.flow.select_variant", choose)


def step(world: Any) -> Wanted:
    wanted: Wanted = world.database.write_now(lambda session: advance(session, session.get_one(JobRow, world.job)))
    return wanted


def states(world: Any) -> list[str]:
    query = select(CandidateRow.state).order_by(CandidateRow.position)
    return list(world.database.read_now(lambda session: session.scalars(query).all()))


def tasks(world: Any) -> list[tuple[str, str, bool, str]]:
    query = (
        select(CandidateRow.recipe, TaskRow.split, TaskRow.metric_only, TaskRow.state)
        .join(TaskRow, TaskRow.candidate_id == CandidateRow.id)
        .order_by(TaskRow.split, CandidateRow.position)
    )
    return [tuple(row) for row in world.database.read_now(lambda session: session.execute(query).all())]


def variant(world: Any, number: int, state: str, reason: str = "") -> None:
    key = world.database.read_now(lambda session: session.get_one(CandidateRow, world.candidates[number]).variant_key)
    world.change(VariantRow, key, state=state, reason=reason)


def measured(world: Any, number: int, split: str) -> None:
    """Put a measurement in, as the engine does when an agent has reported."""

    def write(session: Session) -> None:
        candidate = session.get_one(CandidateRow, world.candidates[number])
        query = select(TaskRow).where(TaskRow.candidate_id == candidate.id, TaskRow.split == split)
        task = session.scalars(query).one()
        task.state, candidate.state = "done", "measured"
        build = session.scalars(select(BuildRow).where(BuildRow.variant_key == candidate.variant_key)).one()
        if session.get(ConditionRow, "c") is None:
            session.add(ConditionRow(id="c", content={}))
            session.flush()
        metric = MetricSummary(name="accuracy", split=split, figure=Figure(value=90, low=88, high=92), n=20)
        session.add(
            MeasurementRow(
                id=new_id(), task_id=task.id, candidate_id=candidate.id, build_id=build.id, device_id=world.device,
                snapshot_id="snapshot", condition_id="c", split=split, raw_sha256=f"{number}{split}",
                summary=MeasurementSummary(status="measured", metric=metric).model_dump(), agent_version="1",
                method_version="1", created_ms=1,
            )
        )  # fmt: skip

    world.database.write_now(write)


def compared(world: Any, split: str) -> None:
    content = Drops(against=world.candidates[0], by_candidate={}).model_dump()
    row = DropsRow(job_id=world.job, device_id=world.device, split=split, content=content)
    world.database.write_now(lambda session: session.add(row))


def test_candidates_follow_their_variants(young: Any) -> None:
    step(young)
    assert states(young) == ["waiting", "waiting"]
    variant(young, 1, "running")
    step(young)
    assert states(young) == ["waiting", "compressing"]
    variant(young, 1, "done")
    assert step(young).wake == set()
    assert states(young) == ["waiting", "waiting"], "nothing is timed before its baseline is there"
    variant(young, 0, "done")
    assert step(young).wake == {young.device}
    assert states(young) == ["measuring", "measuring"]
    assert tasks(young) == [("original", "validation", False, "waiting"), ("small", "validation", False, "waiting")]


def test_a_step_taken_twice_is_taken_once(young: Any) -> None:
    for number in (0, 1):
        variant(young, number, "done")
    for _ in range(3):
        step(young)
    assert len(tasks(young)) == 2


def test_a_failed_variant_fails_its_candidate_with_the_reason(young: Any) -> None:
    variant(young, 0, "done")
    variant(young, 1, "failed", "it diverged")
    step(young)
    assert states(young) == ["measuring", "failed"]
    reason = young.database.read_now(lambda session: session.get_one(CandidateRow, young.candidates[1]).reason)
    assert reason == "it diverged"


def test_without_the_original_nothing_can_be_measured_and_the_job_ends(young: Any) -> None:
    variant(young, 0, "failed", "no memory")
    variant(young, 1, "done")
    assert step(young).report
    assert states(young) == ["failed", "failed"]
    reason = young.database.read_now(lambda session: session.get_one(CandidateRow, young.candidates[1]).reason)
    assert reason == "the original could not be built: no memory"


def test_from_measurements_to_the_report(world: Any) -> None:
    measured(world, 0, "validation")
    assert step(world) == Wanted(), "the other one is still being measured"
    measured(world, 1, "validation")
    wanted = step(world)
    raw = {world.candidates[0]: "0validation", world.candidates[1]: "1validation"}
    assert wanted.drops == [(world.device, "validation", raw)]
    assert not wanted.report
    compared(world, "validation")
    wanted = step(world)
    assert (wanted.wake, wanted.report) == ({world.device}, False)
    assert [t for t in tasks(world) if t[1] == "test"] == [
        ("original", "test", True, "waiting"),
        ("small", "test", True, "waiting"),
    ]
    measured(world, 0, "test")
    assert step(world) == Wanted()
    measured(world, 1, "test")
    assert step(world).drops[0][1] == "test"
    compared(world, "test")
    for _ in range(2):
        assert step(world).report
    assert len(tasks(world)) == 4, "nothing is measured again"


def test_only_what_is_selected_meets_the_test_split(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fleetfit.server.engine.flow.select_variant", lambda job, device: SimpleNamespace(selected=None)
    )
    for number in (0, 1):
        measured(world, number, "validation")
    compared(world, "validation")
    step(world)
    assert [t[0] for t in tasks(world) if t[1] == "test"] == ["original"]


def test_a_failed_test_measurement_does_not_hold_the_report_up(world: Any) -> None:
    for number in (0, 1):
        measured(world, number, "validation")
    compared(world, "validation")
    step(world)
    measured(world, 0, "test")

    def fail(session: Session) -> None:
        query = select(TaskRow).where(TaskRow.candidate_id == world.candidates[1], TaskRow.split == "test")
        session.scalars(query).one().state = "failed"

    world.database.write_now(fail)
    assert step(world).drops[0][2] == {world.candidates[0]: "0test"}
    compared(world, "test")
    assert step(world).report
    assert states(world) == ["measured", "measured"]


def test_a_job_without_data_ends_without_a_metric(world: Any) -> None:
    world.change(JobRow, world.job, dataset_id=None)
    for number in (0, 1):
        measured(world, number, "validation")
    wanted = step(world)
    assert wanted.report
    assert wanted.drops == []


def test_a_used_up_budget_skips_what_is_not_begun_but_never_the_baseline(young: Any) -> None:
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, budget_ms=1)
    young.change(JobRow, young.job, spec=spec.SerializeToString())
    step(young)
    assert states(young) == ["waiting", "skipped"]
    reason = young.database.read_now(lambda session: session.get_one(CandidateRow, young.candidates[1]).reason)
    assert "budget" in reason


@pytest.mark.parametrize(("fence", "state"), [(0, "skipped"), (1, "measuring")])
def test_a_used_up_budget_waits_for_no_device_that_has_not_begun(world: Any, fence: int, state: str) -> None:
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, budget_ms=1)
    world.change(JobRow, world.job, spec=spec.SerializeToString())
    world.change(TaskRow, world.tasks[1], fence=fence)
    for _ in range(2):
        step(world)
        assert states(world) == ["measuring", state]
    assert len(tasks(world)) == (1 if state == "skipped" else 2)


def test_ended_jobs_take_no_steps(young: Any) -> None:
    for number in (0, 1):
        variant(young, number, "done")
    for state in ("done", "failed", "cancelled"):
        young.change(JobRow, young.job, state=state)
        assert step(young) == Wanted()
    assert tasks(young) == []
