"""From an agent's report to a row: raw samples are summed up and compared in children, because that needs numpy."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.core.children import Limits, run_child
from fleetfit.core.digests import key_of
from fleetfit.core.errors import ChildFailed, FleetfitError
from fleetfit.core.metrics import is_user_metric
from fleetfit.proto.v1 import jobs_pb2
from fleetfit.server.engine.comparing import against_of, samples_in_split
from fleetfit.server.engine.facts import metric_of
from fleetfit.server.engine.health import UNREAD, keep_check, next_reported
from fleetfit.server.engine.leases import fail_task
from fleetfit.server.engine.lowering import build_of
from fleetfit.server.engine.scoring import keep_scores, next_scores
from fleetfit.server.engine.states import NO_SPLITS, CandidateState, TaskState
from fleetfit.server.engine.subsets import WantedSubset, keep_subset
from fleetfit.server.report.summary import Drops, MeasurementSummary
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import (
    ArtifactRow,
    CandidateRow,
    ConditionRow,
    DeviceRow,
    DropsRow,
    JobRow,
    MeasurementRow,
    TaskRow,
    VariantRow,
)

_log: Final = logging.getLogger(__name__)
_LIMITS: Final = Limits(memory_bytes=2 << 30, wall_s=120)
# A child may be killed by someone who needs its memory; one that fails by itself will fail again.
_MOST_ATTEMPTS: Final = 3


class Ingestion:
    """Settles reported tasks one at a time, below `folder`. `changed` is called with the id of a job that may go on."""

    def __init__(self, database: Database, store: ArtifactStore, folder: Path, changed: Callable[[str], None]) -> None:
        self._database = database
        self._store = store
        self._folder = folder
        self._changed = changed
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    async def settle_next(self) -> bool:
        """Sum the oldest reported task's samples up and keep what they say. False where nothing was reported."""
        task = await self._database.read(_next_reported)
        if task is None:
            return False
        task_id, job_id, digest = task
        against, of = await self._database.read(
            lambda session: (against_of(session, task_id, self._store), samples_in_split(session, task_id))
        )
        more = [] if against is None else [against.model_dump_json()]
        try:
            text = await self._child("analyse", self._store.path(digest), *more)
            summary = MeasurementSummary.model_validate_json(text)
        except (FleetfitError, ValueError) as error:
            # Whatever it is: reports of other tasks wait behind this one.
            _log.warning("task %s: its result cannot be read: %s", task_id, error)
            reason = "the device's result cannot be read; update its agent, then resume the job"
            await self._database.write(lambda session: _drop(session, task_id, digest, reason))
        else:
            if summary.metric is not None and of is not None:
                metric = summary.metric.model_copy(update={"of": of})
                summary = summary.model_copy(update={"metric": metric})
            await self._database.write(lambda session: _keep(session, task_id, digest, summary))
        self._changed(job_id)
        return True

    async def settle_scores_next(self) -> bool:
        """Check the oldest reported scores and keep their figure. False where nothing was reported."""
        reported = await self._database.read(next_scores)
        if reported is None:
            return False
        source = self._folder / f"{new_id()}.scores.json"
        wanted = {"metric": reported.metric, "split": reported.split, "count": reported.count}
        wanted["path"] = str(self._store.path(reported.sha256).resolve())
        await asyncio.to_thread(source.write_text, json.dumps(wanted))
        try:
            answer = json.loads(await self._child("scored", source))
        except (FleetfitError, ValueError) as error:
            _log.warning("scoring %s: its scores cannot be read: %s", reported.id, error)
            answer = {"refused": "the scores cannot be read; run the scorer again, then resume the job"}
        finally:
            source.unlink(missing_ok=True)
        await self._database.write(lambda session: keep_scores(session, reported.id, answer))
        self._changed(reported.job_id)
        return True

    async def settle_check_next(self) -> str:
        """Judge the oldest reported health check; its device. Empty where none was reported."""
        reported = await self._database.read(next_reported)
        if reported is None:
            return ""
        source = self._folder / f"{new_id()}.check.json"
        wanted = {"result": str(self._store.path(reported.result_sha256).resolve()), "outputs": None}
        if reported.outputs_sha256:
            wanted["outputs"] = str(self._store.path(reported.outputs_sha256).resolve())
        await asyncio.to_thread(source.write_text, json.dumps(wanted))
        try:
            answer = json.loads(await self._child("golden", source))
            summary = MeasurementSummary.model_validate(answer["summary"])
            wrong = None if answer["wrong"] is None else str(answer["wrong"])
        except (FleetfitError, ValueError, KeyError) as error:
            _log.warning("health check %s: its result cannot be read: %s", reported.check_id, error)
            # Ours to mend, or its agent's: neither says that the device is ill.
            summary, wrong = MeasurementSummary(status=UNREAD, message="its result cannot be read"), None
        finally:
            source.unlink(missing_ok=True)
        await self._database.write(lambda session: keep_check(session, reported, summary, wrong))
        return reported.device_id

    async def compare(self, job_id: str, device_id: str, split: str, raw: dict[str, str]) -> None:
        """Compute and keep the paired losses of a device's candidates. Raises ChildFailed."""
        wanted = await self._database.read(lambda session: self._comparison(session, job_id, raw))
        source = self._folder / f"{job_id}.{device_id}.{split}.json"
        await asyncio.to_thread(source.write_text, json.dumps(wanted))
        try:
            drops = Drops.model_validate_json(await self._child("drops", source))
        except ValueError as error:
            raise ChildFailed("the comparison wrote no result", outcome="crashed", private=str(error)) from error
        finally:
            source.unlink(missing_ok=True)

        def keep(session: Session) -> None:
            if session.get(DropsRow, (job_id, device_id, split)) is None:
                row = DropsRow(job_id=job_id, device_id=device_id, split=split, content=drops.model_dump())
                session.add(row)

        await self._database.write(keep)

    async def take_subset(self, wanted: WantedSubset) -> None:
        """Make and keep a part of a split for devices. Raises ChildFailed."""
        source, data, rows = (self._folder / f"{wanted.key}.{end}" for end in ("subset.json", "npz", "npy"))
        asked = {"path": str(self._store.path(wanted.sha256).resolve()), "count": wanted.count, "seed": wanted.seed}
        asked |= {"data": str(data.resolve()), "rows": str(rows.resolve())}
        await asyncio.to_thread(source.write_text, json.dumps(asked))
        try:
            answer = json.loads(await self._child("subset", source))
            if "refused" in answer:
                raise ChildFailed(
                    f"no part of the split can be given to devices: {answer['refused']}", outcome="failed"
                )
            kept = [await asyncio.to_thread(self._store.put, path) for path in (data, rows)]
        except (ValueError, KeyError, TypeError) as error:
            raise ChildFailed(
                "taking a part of the split gave nothing", outcome="crashed", private=str(error)
            ) from error
        finally:
            for path in (source, data, rows):
                path.unlink(missing_ok=True)
        await self._database.write(lambda session: keep_subset(session, wanted, int(answer["count"]), *kept))

    async def render(self, report: str) -> bytes:
        """A report's page, self-contained HTML. Raises ChildFailed."""
        source = self._folder / f"{new_id()}.report.json"
        await asyncio.to_thread(source.write_text, report)
        try:
            return (await self._child("render", source)).encode()
        finally:
            source.unlink(missing_ok=True)

    def _comparison(self, session: Session, job_id: str, raw: dict[str, str]) -> dict[str, Any]:
        job = session.get_one(JobRow, job_id)
        candidates = []
        for candidate_id, digest in raw.items():
            row = session.get_one(CandidateRow, candidate_id)
            recovered = bool(session.get_one(VariantRow, row.variant_key).recovered)
            described = {"id": row.id, "role": row.role, "threads": row.threads, "batch": row.batch}
            described["recovered"] = recovered
            candidates.append(described | {"path": str(self._store.path(digest).resolve())})
        metric = metric_of(session, job, jobs_pb2.JobSpec.FromString(job.spec))
        return {"metric": metric, "scored": is_user_metric(metric), "candidates": candidates}

    async def _child(self, module: str, source: Path, *more: str) -> str:
        out = self._folder / f"{new_id()}.out"
        try:
            for attempt in range(1, _MOST_ATTEMPTS + 1):
                outcome = await run_child(
                    ["-m", f"fleetfit.server.report.{module}", str(source.resolve()), str(out.resolve()), *more],
                    _LIMITS,
                    cwd=self._folder,
                )
                if outcome.kind == "ok" and out.exists():
                    return await asyncio.to_thread(out.read_text)
                if outcome.kind == "failed" or attempt == _MOST_ATTEMPTS:
                    last = (outcome.stderr_tail.strip().splitlines() or ["it said nothing"])[-1]
                    raise ChildFailed(
                        f"a report's step ({module}) ended as {outcome.kind}; the server's log has the details, "
                        "please report it, and resume the job",
                        outcome=outcome.kind,
                        private=f"{last}\n{outcome.stderr_tail}",
                    )
            raise AssertionError("the last attempt returns or raises")
        finally:
            out.unlink(missing_ok=True)


def _next_reported(session: Session) -> tuple[str, str, str] | None:
    query = select(TaskRow).where(TaskRow.state == TaskState.REPORTED).order_by(TaskRow.id).limit(1)
    row = session.scalars(query).first()
    return None if row is None else (row.id, row.job_id, row.result_sha256)


def _reported(session: Session, task_id: str, digest: str) -> TaskRow | None:
    """The task, if its report still is the one that was read: it may have been resumed meanwhile."""
    task = session.get(TaskRow, task_id)
    return task if task is not None and (task.state, task.result_sha256) == (TaskState.REPORTED, digest) else None


def _drop(session: Session, task_id: str, digest: str, reason: str) -> None:
    task = _reported(session, task_id, digest)
    if task is not None:
        fail_task(session, task, reason)


def _keep(session: Session, task_id: str, digest: str, summary: MeasurementSummary) -> None:
    task = _reported(session, task_id, digest)
    if task is None:
        return
    if summary.status != "measured":
        fail_task(session, task, summary.message or f"measuring ended as {summary.status.replace('_', ' ')}")
        return
    candidate = session.get_one(CandidateRow, task.candidate_id)
    device = session.get_one(DeviceRow, task.device_id)
    job = session.get_one(JobRow, task.job_id)
    awaits = task.split not in ("", *NO_SPLITS) and is_user_metric(
        metric_of(session, job, jobs_pb2.JobSpec.FromString(job.spec))
    )
    if awaits and (summary.outputs is None or session.get(ArtifactRow, summary.outputs.sha256) is None):
        fail_task(session, task, f"{device.name} returned no outputs to score; update its agent, then resume the job")
        return
    task.state = TaskState.SCORING if awaits else TaskState.DONE
    if candidate.state == CandidateState.MEASURING:
        candidate.state, candidate.reason = CandidateState.SCORING if awaits else CandidateState.MEASURED, ""
    condition = {"threads": candidate.threads, "batch": candidate.batch, "runtime": summary.runtime}
    condition |= {"runtime_version": summary.runtime_version, "details": summary.condition}
    # Its threads and batch are where curves begin, not what all of it was measured with; and a profiler slows what it looks at.
    condition |= {task.split: True} if task.split in NO_SPLITS else {}
    condition_id = key_of(condition)
    if session.get(ConditionRow, condition_id) is None:
        session.add(ConditionRow(id=condition_id, content=condition))
        session.flush()
    build = build_of(session, candidate)
    assert build is not None  # noqa: S101 - it was handed out
    session.add(
        MeasurementRow(
            id=new_id(),
            task_id=task.id,
            candidate_id=candidate.id,
            build_id=build.id,
            device_id=device.id,
            snapshot_id=device.snapshot_id or "",
            condition_id=condition_id,
            split=task.split,
            raw_sha256=digest,
            summary=summary.model_dump(),
            agent_version=summary.agent_version,
            method_version=summary.method_version,
            created_ms=now_ms(),
        )
    )
