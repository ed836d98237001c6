"""Health checks as rows: planned when a device asks for work, leased and reported as tasks are, then judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.core.digests import key_of, short
from fleetfit.core.errors import Conflict
from fleetfit.proto.v1 import common_pb2, devices_pb2, measurement_pb2, snapshot_pb2, work_pb2
from fleetfit.proto.versions import CHECKS_HEALTH
from fleetfit.server.engine.lookup import read_snapshot
from fleetfit.server.engine.messages import tensor_messages
from fleetfit.server.engine.states import TaskState
from fleetfit.server.engine.verdicts import Found, Judgement, Past, Verdict, described_change, is_due, judge, sets_aside
from fleetfit.server.golden import golden
from fleetfit.server.report.summary import MeasurementSummary
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import (
    ConditionRow,
    DeviceEventRow,
    DeviceRow,
    HealthCheckRow,
)

# Fifty days of a check every six hours: older ones say little of a device as it is.
_MOST_HISTORY: Final = 200
_MOST_EVENTS: Final = 20
# Enough to see what failed before, past some that were unclear.
_LOOKED_BACK: Final = 20
_THREADS: Final = 1
# One that has no format of its own among these cannot be checked.
_FORMATS: Final = ("onnx", "openvino", "ncnn")
UNREAD: Final = "unread"
"""The status of a result that the server cannot read."""
# What a device may say without being ill: its owner's hook did not work, its disk is full.
_EXCUSED: Final = ("refused", "disk_full", UNREAD)
# Differs with every start, and no figure depends on it.
_NO_CONDITION: Final = ("boot_id",)


@dataclass(frozen=True)
class HealthSettings:
    """`every_ms` between two checks of a device; 0: only where a person asks. `method` is how the golden model is timed."""

    every_ms: int = 0
    method: measurement_pb2.Method | None = None


@dataclass(frozen=True)
class Reported:
    """A check whose result waits to be judged: digests of the result and of the outputs, which may be empty."""

    check_id: str
    device_id: str
    result_sha256: str
    outputs_sha256: str


def leased_check(session: Session, device_id: str) -> HealthCheckRow | None:
    """The check that a device holds."""
    query = select(HealthCheckRow).where(
        HealthCheckRow.device_id == device_id, HealthCheckRow.state == TaskState.LEASED
    )
    return session.scalars(query).first()


def is_being_judged(session: Session, device_id: str) -> bool:
    """Whether a device has just reported a check: until that is judged nobody knows if it may have work."""
    query = select(HealthCheckRow.id).where(
        HealthCheckRow.device_id == device_id, HealthCheckRow.state == TaskState.REPORTED
    )
    return session.scalars(query).first() is not None


def next_check(session: Session, device: DeviceRow, settings: HealthSettings) -> HealthCheckRow | None:
    """The check that a free device should do now: one that was lost, or a new one where it is due."""
    waiting = select(HealthCheckRow).where(
        HealthCheckRow.device_id == device.id, HealthCheckRow.state == TaskState.WAITING
    )
    row = session.scalars(waiting).first()
    if row is not None:
        return row
    found = read_snapshot(session, device)
    if found is None or why_unchecked(device, found):
        return None
    past = _past(session, device)
    due = is_due(
        past,
        now_ms(),
        every_ms=settings.every_ms,
        wanted=device.check_wanted,
        set_aside=bool(device.set_aside),
    )
    if not due:
        return None
    device.check_wanted = False
    runtime, kind = _runtime(found) or ("", "")
    row = HealthCheckRow(
        id=new_id(), device_id=device.id, snapshot_id=device.snapshot_id, condition_id=None, runtime=runtime, format=kind,
        state=TaskState.WAITING, fence=0, lease_deadline_ms=0, attempts=0, result_sha256="", result_fence=0,
        outputs_sha256="", progress=None, verdict="", why="", outputs_right=None, p50_ms=None, low_ms=None, high_ms=None,
        expected_low_ms=None, expected_high_ms=None, history=0, trust="", created_ms=now_ms(), finished_ms=0,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def check_lease(row: HealthCheckRow, settings: HealthSettings, lease_ms: int) -> work_pb2.TaskLease:
    """The check as a task: the golden model beside itself, on one thread, and its outputs."""
    model, files = golden(), _artifacts(row)
    ref = measurement_pb2.BuildRef(
        artifact_name="golden",
        runtime=row.runtime,
        format=row.format,
        inputs=tensor_messages([model.input]),
        outputs=tensor_messages([model.output]),
        build_id=f"golden-{short(files['golden'].sha256)}",
    )
    measure = measurement_pb2.MeasureTask(
        candidate=ref,
        # Beside itself only because that is how processes are begun anew; the ratio says nothing here.
        baseline=ref,
        threads=_THREADS,
        batch=len(model.expected),
        data_artifact_name="golden.npz",
        split="golden",
        return_outputs=True,
        method=settings.method,
        health=True,
    )
    named = [common_pb2.NamedArtifact(name=name, artifact=artifact) for name, artifact in files.items()]
    return work_pb2.TaskLease(task_id=row.id, fence=row.fence, lease_ms=lease_ms, measure=measure, artifacts=named)


def check_reads(row: HealthCheckRow) -> set[str]:
    """The digests of what a device fetches for a check."""
    return {artifact.sha256 for artifact in _artifacts(row).values()}


def _artifacts(row: HealthCheckRow) -> dict[str, common_pb2.ArtifactRef]:
    model = golden()
    paths = {"golden": model.files[row.format], "golden.npz": model.samples}
    return {
        name: common_pb2.ArtifactRef(sha256=model.sha256[path.name], size_bytes=path.stat().st_size)
        for name, path in paths.items()
    }


def next_reported(session: Session) -> Reported | None:
    """The oldest check that waits to be judged."""
    query = select(HealthCheckRow).where(HealthCheckRow.state == TaskState.REPORTED).order_by(HealthCheckRow.id)
    row = session.scalars(query).first()
    return None if row is None else Reported(row.id, row.device_id, row.result_sha256, row.outputs_sha256)


def keep_check(session: Session, reported: Reported, summary: MeasurementSummary, wrong: str | None) -> None:
    """Judge a reported check. `wrong` says what is wrong with its outputs, empty where they are right, None without any."""
    row = session.get_one(HealthCheckRow, reported.check_id)
    if (row.state, row.result_sha256) != (TaskState.REPORTED, reported.result_sha256):
        return
    device = session.get_one(DeviceRow, row.device_id)
    measured = summary.status == "measured"
    p50 = summary.latency.p50_ms if measured and summary.latency is not None else None
    history: Sequence[float] = ()
    if measured:
        _note_condition(session, device, row, summary)
        history = _history(session, device, row)
    found = Found(
        p50_ms=p50.value if p50 else None,
        low_ms=p50.low if p50 else None,
        high_ms=p50.high if p50 else None,
        wrong=wrong or "",
        trust=summary.trust,
        failure="" if measured else _failure(summary),
        excused=summary.status in _EXCUSED,
    )
    if measured and wrong is None:
        found = Found(failure="it returned no outputs of the golden model")
    row.p50_ms, row.low_ms, row.high_ms = found.p50_ms, found.low_ms, found.high_ms
    row.outputs_right = None if wrong is None else not wrong
    row.trust, row.history = summary.trust if measured else "", len(history)
    _end(session, device, row, judge(found, history), wrong=bool(wrong))


def fail_check(session: Session, row: HealthCheckRow, why: str, *, excused: bool = False) -> None:
    """End a check that came to no result."""
    device = session.get_one(DeviceRow, row.device_id)
    _end(session, device, row, judge(Found(failure=why, excused=excused), ()), wrong=False)


def _failure(summary: MeasurementSummary) -> str:
    said = summary.message or f"it ended as {summary.status.replace('_', ' ')}"
    return f"the golden model could not be measured: {said}"


def _note_condition(session: Session, device: DeviceRow, row: HealthCheckRow, summary: MeasurementSummary) -> None:
    """Give a check its condition, and say what changed since the one before."""
    condition = {name: value for name, value in summary.condition.items() if name not in _NO_CONDITION}
    condition |= {"runtime": summary.runtime, "runtime_version": summary.runtime_version}
    condition |= {"method_version": summary.method_version, "golden": golden().sha256[golden().files[row.format].name]}
    condition_id = key_of({"health": condition})
    if session.get(ConditionRow, condition_id) is None:
        session.add(ConditionRow(id=condition_id, content=condition))
        session.flush()
    row.condition_id = condition_id
    before = session.scalars(
        select(HealthCheckRow)
        .where(
            HealthCheckRow.device_id == device.id,
            HealthCheckRow.id < row.id,
            HealthCheckRow.condition_id.is_not(None),
        )
        .order_by(HealthCheckRow.id.desc())
    ).first()
    if before is not None and before.condition_id is not None and before.condition_id != row.condition_id:
        old = session.get_one(ConditionRow, before.condition_id).content
        add_event(session, device.id, described_change(_worded(old), _worded(condition)))


def _worded(condition: dict[str, str]) -> dict[str, str]:
    return condition | {"golden": short(condition["golden"])}


def _history(session: Session, device: DeviceRow, row: HealthCheckRow) -> Sequence[float]:
    """p50 of the device's earlier checks under a check's condition that were as they should be, in milliseconds."""
    query = (
        select(HealthCheckRow.p50_ms)
        .where(
            HealthCheckRow.device_id == device.id,
            HealthCheckRow.condition_id == row.condition_id,
            HealthCheckRow.verdict.in_((Verdict.PASSED, Verdict.NEW)),
            HealthCheckRow.finished_ms >= device.history_from_ms,
        )
        .order_by(HealthCheckRow.id.desc())
        .limit(_MOST_HISTORY)
    )
    return [value for value in session.scalars(query) if value is not None]


def _past(session: Session, device: DeviceRow) -> Sequence[Past]:
    """What is known of a device, the newest first: its ended checks since a person last cleared it, and that."""
    query = (
        select(HealthCheckRow)
        .where(
            HealthCheckRow.device_id == device.id,
            HealthCheckRow.verdict != "",
            HealthCheckRow.finished_ms > device.cleared_ms,
        )
        .order_by(HealthCheckRow.id.desc())
        .limit(_LOOKED_BACK)
    )
    past = [Past(Verdict(row.verdict), row.finished_ms) for row in session.scalars(query)]
    return [*past, Past(Verdict.PASSED, device.cleared_ms)] if device.cleared_ms else past


def _end(session: Session, device: DeviceRow, row: HealthCheckRow, judgement: Judgement, *, wrong: bool) -> None:
    earlier = _past(session, device)
    row.state, row.progress = TaskState.DONE, None
    row.verdict, row.why, row.finished_ms = judgement.verdict, judgement.why, now_ms()
    if judgement.expected is not None:
        row.expected_low_ms, row.expected_high_ms = judgement.expected
    if sets_aside(judgement, wrong=wrong, earlier=earlier):
        if not device.set_aside:
            add_event(session, device.id, f"set aside: {judgement.why}")
        device.set_aside = judgement.why
    elif judgement.verdict is Verdict.FAILED and not device.set_aside:
        add_event(session, device.id, f"a health check failed and is repeated: {judgement.why}")
    elif judgement.verdict in (Verdict.PASSED, Verdict.NEW):
        if device.set_aside:
            add_event(session, device.id, "passes again, and takes work again")
        elif judgement.why and judgement.verdict is Verdict.PASSED:
            add_event(session, device.id, judgement.why)
        device.set_aside = ""


def want_check(session: Session, device: DeviceRow) -> None:
    """Ask for a check as soon as the device is free. Raises Conflict where it cannot be checked."""
    found = read_snapshot(session, device)
    reason = why_unchecked(device, found) if found is not None else "its agent has never connected"
    if reason:
        raise Conflict(f"{device.name} cannot be checked: {reason}")
    device.check_wanted = True


def clear(session: Session, device: DeviceRow, *, forget_history: bool) -> None:
    """A person's word that a device is well. Raises Conflict where there is nothing to clear."""
    if not device.set_aside and not forget_history:
        raise Conflict(f"{device.name} is not set aside; there is nothing to clear")
    if device.set_aside:
        add_event(session, device.id, "cleared by a person")
    if forget_history:
        add_event(session, device.id, "its history was forgotten by a person, and begins anew")
        device.history_from_ms = now_ms()
    device.set_aside, device.cleared_ms = "", now_ms()


def add_event(session: Session, device_id: str, text: str) -> None:
    """Write down what happened to a device."""
    session.add(DeviceEventRow(id=new_id(), device_id=device_id, text=text, at_ms=now_ms()))


def why_unchecked(device: DeviceRow, found: snapshot_pb2.DeviceSnapshot) -> str:
    """Why a device cannot be checked, as a clause; empty where it can."""
    if CHECKS_HEALTH not in device.capabilities:
        return f"its agent ({device.agent_version or 'of an unknown version'}) knows no health checks; update it"
    if found.emulated:
        return "it is emulated, and what an emulation takes says nothing"
    if _runtime(found) is None:
        return f"no runtime on it loads the golden model ({', '.join(_FORMATS)}); `fleetfit agent doctor` says what to install"
    return ""


def _runtime(found: snapshot_pb2.DeviceSnapshot) -> tuple[str, str] | None:
    """The runtime that a device is checked with, and its format of the golden model. An engine takes minutes: it comes last."""
    usable = [(runtime.name, set(runtime.formats) or {runtime.name}) for runtime in found.runtimes if runtime.available]
    usable.sort(key=lambda one: one[0] == "tensorrt")
    for kind in _FORMATS:
        for name, formats in usable:
            if kind in formats or (kind == "onnx" and name == "onnxruntime"):
                return name, kind
    return None


def waiting_words(session: Session, devices: Sequence[DeviceRow]) -> list[str]:
    """Why work waits for these devices' health, a clause each."""
    leased = select(HealthCheckRow.device_id).where(HealthCheckRow.state.in_((TaskState.LEASED, TaskState.REPORTED)))
    checked = set(session.scalars(leased))
    parts = [f"checking the health of {device.name}" for device in devices if device.id in checked]
    return parts + [
        f"waiting for {device.name}, which is set aside ({device.set_aside}): `fleetfit devices show {device.name}`"
        for device in devices
        if device.set_aside
    ]


def describe(session: Session, device: DeviceRow, message: devices_pb2.Device, every_ms: int, *, in_full: bool) -> None:
    """Add to a device as the protocol has it what is known of its health; events only in full."""
    message.set_aside = device.set_aside
    found = read_snapshot(session, device)
    if found is not None:
        message.no_check_because = why_unchecked(device, found)
    if not message.no_check_because and every_ms <= 0:
        message.no_check_because = "the server checks only where it is asked to (--health-every 0)"
    newest = (
        select(HealthCheckRow)
        .where(HealthCheckRow.device_id == device.id, HealthCheckRow.verdict != "")
        .order_by(HealthCheckRow.id.desc())
    )
    row = session.scalars(newest).first()
    if row is not None:
        message.last_check.CopyFrom(_check_message(session, row))
    if not message.current_task_id and (held := leased_check(session, device.id)) is not None:
        message.current_task_id = held.id
    if in_full:
        query = select(DeviceEventRow).where(DeviceEventRow.device_id == device.id).order_by(DeviceEventRow.id.desc())
        for event in session.scalars(query.limit(_MOST_EVENTS)):
            message.events.add(at_unix_ms=event.at_ms, text=event.text)


def _check_message(session: Session, row: HealthCheckRow) -> devices_pb2.HealthCheck:
    condition = session.get(ConditionRow, row.condition_id) if row.condition_id else None
    return devices_pb2.HealthCheck(
        check_id=row.id,
        at_unix_ms=row.finished_ms,
        verdict=row.verdict,
        why=row.why,
        p50_ms=row.p50_ms,
        low_ms=row.low_ms,
        high_ms=row.high_ms,
        outputs_right=row.outputs_right,
        trust=row.trust,
        expected_low_ms=row.expected_low_ms,
        expected_high_ms=row.expected_high_ms,
        history=row.history,
        runtime=row.runtime,
        condition_id=row.condition_id or "",
        condition=condition.content if condition is not None else None,
    )
