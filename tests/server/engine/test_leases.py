from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from fleetfit.core.errors import LeaseLost, NotFound, Superseded
from fleetfit.device_profiles.loader import load_profiles
from fleetfit.proto.v1 import common_pb2, jobs_pb2, measurement_pb2, work_pb2
from fleetfit.server.engine.jobs import cancel_job, resume_job
from fleetfit.server.engine.leases import Leases, fail_task
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.tables import CandidateRow, DatasetRow, DeviceRow, DeviceSnapshotRow, JobRow, TaskRow

LEASE_MS = 1000


class Clock:
    now_ms = 5_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(world: Any, store: ArtifactStore, clock: Clock) -> Leases:
    return Leases(world.database, store, measurement_pb2.Method(pair_processes=3), lease_ms=LEASE_MS, clock_ms=clock)


def lease(leases: Leases, device: str, session: int = 1) -> work_pb2.TaskLease | None:
    return asyncio.run(leases.lease(device, session))


def held(leases: Leases, device: str, session: int = 1) -> work_pb2.TaskLease:
    found = lease(leases, device, session)
    assert found is not None
    return found


def renew(leases: Leases, world: Any, task: work_pb2.TaskLease, session: int = 1) -> tuple[int, bool]:
    request = work_pb2.RenewLeaseRequest(
        session_number=session,
        task_id=task.task_id,
        fence=task.fence,
        progress=common_pb2.Progress(activity="measuring", fraction=0.5),
    )
    lease_ms, cancelled, job = asyncio.run(leases.renew(world.device, request))
    assert job == world.job
    return lease_ms, cancelled


def report(leases: Leases, world: Any, task: work_pb2.TaskLease, sha256: str, session: int = 1) -> bool:
    request = work_pb2.ReportTaskRequest(
        session_number=session, task_id=task.task_id, fence=task.fence, result=common_pb2.ArtifactRef(sha256=sha256)
    )
    return asyncio.run(leases.report(world.device, request))


def test_a_task_names_all_that_it_reads(leases: Leases, world: Any) -> None:
    task = held(leases, world.device)
    assert task.task_id == world.tasks[0]
    assert (task.fence, task.lease_ms) == (1, LEASE_MS)
    assert task.measure.job_id == world.job
    assert task.measure.method.pair_processes == 3
    assert (task.measure.split, task.measure.metric, task.measure.metric_only) == ("validation", "accuracy", False)
    names = {named.name: named.artifact.sha256 for named in task.artifacts}
    assert set(names) == {"candidate", "baseline", "validation.npz"}
    # The original is timed beside itself: an A/A control.
    assert names["candidate"] == names["baseline"]
    assert [tensor.name for tensor in task.measure.candidate.inputs] == ["x"]


def test_an_emulated_device_is_not_timed_with_care(
    leases: Leases, world: Any, make_snapshot: Callable[..., Any]
) -> None:
    played = make_snapshot()
    played.emulated = True
    world.change(DeviceSnapshotRow, "snapshot", content=played.SerializeToString())
    method = held(leases, world.device).measure.method
    assert (method.pair_processes, method.precision) == (2, 0)
    assert method.child_limit_ns >= 600_000_000_000


def test_a_recipe_is_timed_beside_the_original(leases: Leases, world: Any, keep: Callable[[bytes], str]) -> None:
    first = held(leases, world.device)
    report(leases, world, first, keep(b"result"))
    second = held(leases, world.device)
    names = {named.name: named.artifact.sha256 for named in second.artifacts}
    baseline = {named.name: named.artifact.sha256 for named in first.artifacts}["candidate"]
    assert second.task_id == world.tasks[1]
    assert names["baseline"] == baseline != names["candidate"]


def test_a_test_task_needs_no_baseline(leases: Leases, world: Any) -> None:
    world.change(TaskRow, world.tasks[0], split="test", metric_only=True)
    task = held(leases, world.device)
    assert not task.measure.HasField("baseline")
    assert {named.name for named in task.artifacts} == {"candidate", "test.npz"}


def test_only_a_whole_measurement_goes_on_without_a_pause(leases: Leases, world: Any) -> None:
    spec = jobs_pb2.JobSpec(sustained_ms=90_000).SerializeToString()
    world.change(JobRow, world.job, spec=spec)
    assert held(leases, world.device).measure.method.sustained_ns == 90_000_000_000
    # The device asks again, as after a restart.
    world.change(TaskRow, world.tasks[0], split="test", metric_only=True)
    assert held(leases, world.device).measure.method.sustained_ns == 0


def test_a_job_may_ask_for_a_power_mode_and_for_no_figures_without_it(
    leases: Leases, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = held(leases, world.device).measure.method
    assert not method.refuse_unfit and not method.power_mode
    declared = load_profiles()["raspberry-pi-4"]
    declared = declared.model_copy(update={"conditions": declared.conditions.model_copy(update={"power_mode": "15W"})})
    monkeypatch.setattr("fleetfit.server.engine.leases.load_profiles", lambda: {"board": declared})
    world.change(DeviceRow, world.device, profile="board")
    assert held(leases, world.device).measure.method.power_mode == "15W"
    spec = jobs_pb2.JobSpec(refuse_unfit=True, power_mode="MAXN").SerializeToString()
    world.change(JobRow, world.job, spec=spec)
    method = held(leases, world.device).measure.method
    assert method.refuse_unfit and method.power_mode == "MAXN"


def test_a_test_task_of_a_metric_without_targets_brings_the_original(leases: Leases, world: Any) -> None:
    spec = jobs_pb2.JobSpec(metric="agreement").SerializeToString()
    world.change(JobRow, world.job, spec=spec)
    world.change(TaskRow, world.tasks[0], split="test", metric_only=True)
    task = held(leases, world.device)
    assert task.measure.HasField("baseline") and task.measure.metric == "agreement"


def test_one_device_holds_one_task(leases: Leases, world: Any) -> None:
    first = held(leases, world.device)
    again = held(leases, world.device)
    assert again.task_id == first.task_id
    assert again.fence == first.fence + 1
    assert world.task(1)["state"] == "waiting"


def test_an_older_session_gets_nothing_and_changes_nothing(
    leases: Leases, world: Any, keep: Callable[[bytes], str]
) -> None:
    task = held(leases, world.device)
    world.change(DeviceRow, world.device, session_number=2)
    for use in (
        lambda: lease(leases, world.device, 1),
        lambda: renew(leases, world, task, 1),
        lambda: report(leases, world, task, keep(b"late"), 1),
    ):
        with pytest.raises(Superseded, match="another agent with this device's identity"):
            use()
    assert world.task()["state"] == "leased"


def test_a_new_process_of_the_device_reports_what_its_old_one_measured(
    leases: Leases, world: Any, keep: Callable[[bytes], str]
) -> None:
    task = held(leases, world.device)
    world.change(DeviceRow, world.device, session_number=2)
    assert report(leases, world, task, keep(b"spooled"), session=2)
    assert world.task()["state"] == "reported"


def test_a_late_report_of_an_old_lease_is_refused(leases: Leases, world: Any, keep: Callable[[bytes], str]) -> None:
    old = held(leases, world.device)
    new = held(leases, world.device)
    with pytest.raises(LeaseLost, match="leased again since"):
        report(leases, world, old, keep(b"old"))
    with pytest.raises(LeaseLost, match="leased again since"):
        renew(leases, world, old)
    assert report(leases, world, new, keep(b"new"))
    with pytest.raises(LeaseLost):
        report(leases, world, old, keep(b"old"))
    assert world.task()["result_sha256"] == keep(b"new")


def test_a_repeated_report_counts_once(leases: Leases, world: Any, keep: Callable[[bytes], str]) -> None:
    task = held(leases, world.device)
    assert report(leases, world, task, keep(b"result")) is True
    assert report(leases, world, task, keep(b"result")) is False
    assert report(leases, world, task, keep(b"something else")) is False
    assert world.task()["result_sha256"] == keep(b"result")
    world.change(TaskRow, task.task_id, state="done")
    assert report(leases, world, task, keep(b"result")) is False
    assert world.task()["state"] == "done"


def test_a_report_needs_its_result_to_be_there(leases: Leases, world: Any) -> None:
    task = held(leases, world.device)
    with pytest.raises(NotFound, match="upload it first"):
        report(leases, world, task, "0" * 64)
    assert world.task()["state"] == "leased"


def test_a_silent_devices_lease_runs_out(
    leases: Leases, world: Any, clock: Clock, keep: Callable[[bytes], str]
) -> None:
    task = held(leases, world.device)
    clock.now_ms += LEASE_MS
    assert asyncio.run(leases.expire()) == set()
    clock.now_ms += 1
    assert asyncio.run(leases.expire()) == {world.device}
    assert world.task()["state"] == "waiting"
    # Nobody else had it meanwhile, so what was measured is taken and not measured again.
    assert report(leases, world, task, keep(b"result"))


def test_renewing_keeps_a_lease(leases: Leases, world: Any, clock: Clock) -> None:
    task = held(leases, world.device)
    for _ in range(5):
        clock.now_ms += LEASE_MS - 1
        assert asyncio.run(leases.expire()) == set()
        assert renew(leases, world, task) == (LEASE_MS, False)
    assert world.task()["progress"] == {"activity": "measuring", "fraction": 0.5}


def test_a_restarted_server_gives_every_lease_its_time_again(
    leases: Leases, world: Any, store: ArtifactStore, clock: Clock
) -> None:
    task = held(leases, world.device)
    rebooted = Clock()
    rebooted.now_ms = 0
    again = Leases(world.database, store, measurement_pb2.Method(), lease_ms=LEASE_MS, clock_ms=rebooted)
    asyncio.run(again.extend_all())
    rebooted.now_ms = LEASE_MS - 1
    assert asyncio.run(again.expire()) == set()
    assert renew(again, world, task) == (LEASE_MS, False)


def test_a_device_that_is_lost_again_and_again_fails_the_candidate(leases: Leases, world: Any, clock: Clock) -> None:
    for _ in range(5):
        assert held(leases, world.device).task_id == world.tasks[0]
        clock.now_ms += LEASE_MS + 1
        asyncio.run(leases.expire())
    assert world.task()["state"] == "failed"
    assert held(leases, world.device).task_id == world.tasks[1]


def test_a_device_that_begins_again_and_again_fails_the_candidate(leases: Leases, world: Any) -> None:
    """Its agent comes back within its lease each time, so that no lease ever runs out."""
    for _ in range(5):
        assert held(leases, world.device).task_id == world.tasks[0]
    assert held(leases, world.device).task_id == world.tasks[1]
    assert world.task()["state"] == "failed"
    query = select(CandidateRow.reason).where(CandidateRow.id == world.candidates[0])
    assert "5 times" in world.database.read_now(lambda session: session.scalars(query).one())


def test_a_cancelled_task_says_so_and_takes_no_result(leases: Leases, world: Any, keep: Callable[[bytes], str]) -> None:
    task = held(leases, world.device)
    world.change(TaskRow, task.task_id, state="cancelled")
    assert renew(leases, world, task) == (0, True)
    with pytest.raises(LeaseLost, match="cancelled"):
        report(leases, world, task, keep(b"result"))


@pytest.mark.parametrize("ended_as", ["cancelled", "failed"])
def test_what_was_held_before_a_job_was_resumed_is_not_believed(
    ended_as: str, leases: Leases, world: Any, keep: Callable[[bytes], str]
) -> None:
    old = held(leases, world.device)
    if ended_as == "cancelled":
        world.database.write_now(lambda session: cancel_job(session, session.get_one(JobRow, world.job)))
    else:
        world.database.write_now(lambda session: fail_task(session, session.get_one(TaskRow, old.task_id), "no memory"))
        world.change(JobRow, world.job, state="done")
    world.database.write_now(lambda session: resume_job(session, session.get_one(JobRow, world.job)))
    for use in (lambda: renew(leases, world, old), lambda: report(leases, world, old, keep(b"old"))):
        with pytest.raises(LeaseLost):
            use()
    assert held(leases, world.device).fence > old.fence


def test_paused_devices_and_ended_jobs_get_no_work(leases: Leases, world: Any) -> None:
    world.change(DeviceRow, world.device, paused=True)
    assert lease(leases, world.device) is None
    world.change(DeviceRow, world.device, paused=False)
    world.change(JobRow, world.job, state="cancelled")
    assert lease(leases, world.device) is None


def test_a_device_gets_work_within_its_hours_only_and_finishes_what_it_holds(
    world: Any, store: ArtifactStore, clock: Clock
) -> None:
    moment = datetime(2026, 11, 26, 12, 0, tzinfo=timezone.utc)
    method = measurement_pb2.Method(pair_processes=3)
    leases = Leases(world.database, store, method, lease_ms=LEASE_MS, clock_ms=clock, now=lambda: moment)
    world.change(DeviceRow, world.device, hours=["22:00-06:00"])
    assert lease(leases, world.device) is None
    moment = datetime(2026, 11, 26, 22, 0, tzinfo=timezone.utc)
    task = held(leases, world.device)
    moment = datetime(2026, 11, 27, 6, 0, tzinfo=timezone.utc)
    assert renew(leases, world, task) == (LEASE_MS, False)


def test_a_paused_device_finishes_what_it_holds(leases: Leases, world: Any) -> None:
    task = held(leases, world.device)
    world.change(DeviceRow, world.device, paused=True)
    assert renew(leases, world, task) == (LEASE_MS, False)


def test_another_devices_task_is_out_of_reach(leases: Leases, world: Any, keep: Callable[[bytes], str]) -> None:
    task = held(leases, world.device)
    world.change(TaskRow, task.task_id, device_id=world.device)
    request = work_pb2.ReportTaskRequest(
        session_number=1, task_id=task.task_id, fence=1, result=common_pb2.ArtifactRef(sha256=keep(b"forged"))
    )
    with pytest.raises(NotFound):
        asyncio.run(leases.report("somebody-else", request))
    assert world.task()["state"] == "leased"


def test_a_device_may_read_what_its_task_names_and_nothing_else(leases: Leases, world: Any) -> None:
    def may(sha256: str, device: str = world.device) -> bool:
        return asyncio.run(leases.may_download(device, sha256))

    splits = world.database.read_now(lambda session: session.query(DatasetRow).one().splits)
    validation, test = splits["validation"]["sha256"], splits["test"]["sha256"]
    assert not may(validation), "nothing is leased yet"
    task = held(leases, world.device)
    for named in task.artifacts:
        assert may(named.artifact.sha256)
        assert not may(named.artifact.sha256, "somebody-else")
    assert not may(test)
    # Its lease ran out while its link was down: it goes on fetching before it renews.
    world.change(TaskRow, task.task_id, state="waiting")
    assert may(validation)
    world.change(TaskRow, task.task_id, state="done")
    assert not may(validation)


def test_a_task_that_cannot_be_handed_out_does_not_hold_the_others_up(leases: Leases, world: Any) -> None:
    """A dataset whose split is gone, say: the device must still get its other work."""
    world.change(TaskRow, world.tasks[0], split="no such split")
    task = held(leases, world.device)
    assert task.task_id == world.tasks[1]
    assert world.task(0)["state"] == "failed"


ACTIONS = st.lists(
    st.one_of(
        st.just(("lease",)),
        st.tuples(st.just("wait"), st.integers(1, LEASE_MS + 500)),
        st.tuples(st.sampled_from(["renew", "report"]), st.integers(0, 5)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_whatever_happens_every_task_gets_at_most_one_result(
    actions: list[tuple[Any, ...]], leases: Leases, world: Any, clock: Clock, keep: Callable[[bytes], str]
) -> None:
    for number in range(2):
        world.change(
            TaskRow, world.tasks[number], state="waiting", fence=0, attempts=0, result_sha256="", result_fence=0
        )
    given_out: list[work_pb2.TaskLease] = []
    accepted: dict[str, str] = {}
    newest: dict[str, int] = {}
    for step, action in enumerate(actions):
        if action[0] == "lease":
            found = lease(leases, world.device)
            if found is not None:
                assert found.fence > newest.get(found.task_id, 0), "tokens only grow"
                assert found.task_id not in accepted, "what has a result is not handed out again"
                newest[found.task_id] = found.fence
                given_out.append(found)
        elif action[0] == "wait":
            clock.now_ms += action[1]
            asyncio.run(leases.expire())
        elif given_out:
            task = given_out[action[1] % len(given_out)]
            current = task.fence == newest[task.task_id]
            try:
                if action[0] == "renew":
                    renew(leases, world, task)
                else:
                    result = keep(f"{step}".encode())
                    if report(leases, world, task, result):
                        assert current
                        assert task.task_id not in accepted
                        accepted[task.task_id] = result
            except LeaseLost:
                failed = world.task(world.tasks.index(task.task_id))["state"] == "failed"
                assert not current or task.task_id in accepted or failed
        leased = [n for n in range(2) if world.task(n)["state"] == "leased"]
        assert len(leased) <= 1, "one task at a time"
    for number, task_id in enumerate(world.tasks):
        assert world.task(number)["result_sha256"] == accepted.get(task_id, "")
