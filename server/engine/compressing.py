"""Making variants: the next one that a running job waits for, in a child, and what its end means."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from fleetfit.compress.export.registry import DEFAULT
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import (
    Build,
    Compress,
    CompressFacts,
    CudaDevice,
    DataFacts,
    Evidence,
    Limits,
    Samples,
    Task,
    TaskProgress,
    Trainable,
)
from fleetfit.core.errors import Conflict, FleetfitError, IntegrityError
from fleetfit.proto.v1 import jobs_pb2
from fleetfit.server.engine.executor import Executor, Finished
from fleetfit.server.engine.facts import metric_of, trained_by
from fleetfit.server.engine.keys import build_key, trained_on, variant_key
from fleetfit.server.engine.library import keep_artifact
from fleetfit.server.engine.lowering import keep_build, take_build, want_build
from fleetfit.server.engine.planning import MADE_FROM
from fleetfit.server.engine.recovered import work_of_recovered
from fleetfit.server.engine.states import CandidateState, JobState, VariantState, follow
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.tables import BuildRow, CandidateRow, DatasetRow, JobRow, ModelRow, VariantRow

_log: Final = logging.getLogger(__name__)
_MOST_ATTEMPTS: Final = 3


@dataclass(frozen=True)
class _Work:
    """A variant to be made, or a build of one that is there; `key` is that row's, `variant` the variant's."""

    kind: Literal["variant", "build"]
    key: str
    variant: str
    task: Task
    inputs: dict[str, str]
    attempt: int
    jobs: tuple[str, ...] = ()
    """Whose limits the task has, in the same order."""

    def found(self, session: Session) -> VariantRow | BuildRow:
        """Its row."""
        return session.get_one(VariantRow, self.key) if self.kind == "variant" else session.get_one(BuildRow, self.key)


class Compressor:
    """Makes one variant or build at a time. `changed` is called with a variant's key whenever its row or a build's changed."""

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        executor: Executor,
        threads: int,
        changed: Callable[[str], None],
        cuda: CudaDevice | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._executor = executor
        self._threads = threads
        self._changed = changed
        self._cuda = cuda
        self.progress: dict[str, TaskProgress] = {}
        self._children: dict[str, asyncio.Task[None]] = {}
        # Whether the end of the last variant could not be written, so that its row still says that it is being made.
        self._unsettled = False

    async def recover(self) -> None:
        """After a start: what was being made when the server died is made again."""

        def free(session: Session) -> None:
            rows: list[VariantRow | BuildRow] = [
                *session.scalars(select(VariantRow).where(VariantRow.state == VariantState.RUNNING)),
                *session.scalars(select(BuildRow).where(BuildRow.state == VariantState.RUNNING)),
            ]
            for row in rows:
                row.state = VariantState.WAITING
                # The server's end was not the variant's fault.
                row.attempts = max(row.attempts - 1, 0)

        await self._database.write(free)

    async def make_next(self) -> bool:
        """Make what the oldest running job needs next: a build of a variant that is there, or a variant. False where none waits."""
        if self._unsettled:
            await self.recover()
            self._unsettled = False
        work = await self._database.write(lambda session: _take(session, self._threads, self._cuda))
        if work is None:
            return False
        self._unsettled = True
        self._changed(work.variant)
        child = asyncio.create_task(self._make(work))
        self._children[work.key] = child
        try:
            await asyncio.wait({child})
        finally:
            # Reached with the child running only when the engine stops; `recover` then frees the variant.
            child.cancel()
            await asyncio.gather(child, return_exceptions=True)
            self._children.pop(work.key, None)
            self.progress.pop(work.key, None)
        if child.cancelled():
            await self._database.write(lambda session: _give_back(session, work))
        else:
            child.result()
        self._unsettled = False
        self._changed(work.variant)
        return True

    async def drop_unwanted(self) -> None:
        """End the children whose work no running job wants any more."""
        for key, child in list(self._children.items()):
            if not await self._database.read(lambda session, key=key: _wanted(session, key)):  # type: ignore[misc]
                child.cancel()

    async def _make(self, work: _Work) -> None:
        try:
            async with self._executor.run(
                work.task, work.inputs, lambda progress: self._tell(work, progress)
            ) as finished:
                await self._settle(work, finished)
        except (FleetfitError, OSError) as error:
            _log.warning("variant %s: %s", work.key[:10], error)
            reason = error.message if isinstance(error, FleetfitError) else _told_by_system(error)
            await self._database.write(lambda session: _end(session, work, VariantState.FAILED, reason))
        except Exception:
            _log.exception("variant %s", work.key[:10])
            await self._database.write(lambda session: _end(session, work, VariantState.FAILED, _BUG))

    async def _settle(self, work: _Work, finished: Finished) -> None:
        result = finished.result
        if result is not None and result.build is not None:
            build = result.build
            for one in build.files():
                await self._take_in(finished.out / one.file, one)
            await self._database.write(lambda session: keep_build(session, work.key, build))
            return
        if result is not None and result.compress is not None:
            facts = result.compress
            check_device(facts, self._cuda if work.task.wants_cuda() else None)
            files: list[Build | Samples | Evidence | Trainable] = [one for b in facts.builds for one in b.files()]
            if facts.trainable is not None:
                files.append(facts.trainable)
            for made in files:
                await self._take_in(finished.out / made.file, made)
            held = {"windows": [window.model_dump() for window in result.held], "confinement": result.confinement}
            await self._database.write(lambda session: _keep(session, work.key, facts, held))
            return
        if result is not None and result.stopped is not None and len(result.stopped.reasons) == len(work.jobs) > 0:
            reasons = dict(zip(work.jobs, result.stopped.reasons, strict=True))
            await self._database.write(lambda session: _stop(session, work.key, reasons))
            return
        if result is not None and result.error is not None:
            _log.warning("variant %s: %s\n%s", work.key[:10], result.error.message, result.error.private)
            reason = result.error.message
            await self._database.write(lambda session: _end(session, work, VariantState.FAILED, reason))
            return
        _log.warning("variant %s: its child ended as %s: %s", work.key[:10], finished.outcome.kind, finished.outcome)
        # A child that was killed says nothing about the recipe: it may have been someone's kill, or another's memory.
        again = work.attempt < _MOST_ATTEMPTS and finished.outcome.kind != "timed_out"
        reason = _ENDINGS.get(finished.outcome.kind, _CRASHED).format(attempts=work.attempt)
        state = VariantState.WAITING if again else VariantState.FAILED
        await self._database.write(lambda session: _end(session, work, state, "" if again else reason))

    async def _take_in(self, path: Path, made: Build | Samples | Evidence | Trainable) -> None:
        taken = await asyncio.to_thread(self._store.put, path)
        if taken != (made.sha256, made.size_bytes):
            raise IntegrityError(f"{made.file} changed after it was checked; resume the job")

    def _tell(self, work: _Work, progress: TaskProgress) -> None:
        self.progress[work.key] = progress
        self._changed(work.variant)


_BUG: Final = "compressing met a bug of the server's; its log has the details, please report it, then resume the job"
_CRASHED: Final = "compressing crashed {attempts} times; the server's log has the details, please report it"
_ENDINGS: Final = {
    "out_of_memory": "compressing was killed {attempts} times, most likely because it needs more memory than a task may "
    "use; raise the server's limit or use a smaller model or batch, then resume the job",
    "timed_out": "compressing took longer than a task may; raise the server's limit, then resume the job",
}


def _told_by_system(error: OSError) -> str:
    return f"the server could not carry the task out ({error.strerror}); put that right, then resume the job"


def _take(session: Session, threads: int, cuda: CudaDevice | None) -> _Work | None:
    """Mark what is made next. Builds come first: they take little time, and devices wait for them."""
    build = take_build(session, threads, _judged_by)
    if build is not None:
        return _Work("build", build.build_id, build.variant_key, build.task, build.inputs, build.attempt)
    return _take_variant(session, threads, cuda)


def _judged_by(session: Session, job: JobRow) -> str:
    return trained_by(metric_of(session, job, jobs_pb2.JobSpec.FromString(job.spec)))


def _take_variant(session: Session, threads: int, cuda: CudaDevice | None) -> _Work | None:
    """Mark the next wanted variant as being made: the oldest job's first, in the order of its plan."""
    wanted = (
        select(VariantRow, JobRow)
        .join(CandidateRow, CandidateRow.variant_key == VariantRow.key)
        .join(JobRow, JobRow.id == CandidateRow.job_id)
        .where(
            VariantRow.state == VariantState.WAITING,
            JobRow.state == JobState.RUNNING,
            CandidateRow.state.in_([CandidateState.WAITING, CandidateState.COMPRESSING]),
        )
        .order_by(JobRow.id, CandidateRow.position)
        .limit(1)
    )
    while (found := session.execute(wanted).first()) is not None:
        variant, job = found[0], found[1]
        model = session.get_one(ModelRow, job.model_id)
        data = session.get(DatasetRow, job.dataset_id) if job.dataset_id else None
        limits = _limits_by_job(session, variant.key)
        metric = _judged_by(session, job)
        recovered, network = work_of_recovered(session, variant, metric) if variant.recovered else (None, "")
        work = Compress(
            format=model.format,  # type: ignore[arg-type]
            recipe=variant.recipe,
            task=DataFacts.model_validate(data.facts).task if data is not None else "",
            metric=metric,
            seed=variant.seed,
            threads=threads,
            limits=list(limits.values()),
            recovered=recovered,
            evidence=True,
        )
        splits = {name: data.splits[name]["sha256"] for name in MADE_FROM} if data is not None else {}
        try:
            recipe = Recipe.from_yaml(work.recipe) if work.recipe else Recipe.original()
            key = _key_of(work, recipe, model.sha256, splits, cuda, variant.recovered)
        except FleetfitError as error:
            # A pass that was there when the job was planned, say: the others must not wait behind it.
            variant.state, variant.reason = VariantState.FAILED, error.message
            session.flush()
            continue
        if key != variant.key:
            _rename(session, variant, key)
            continue
        if trained_on(recipe.for_builds() if recovered else recipe, cuda) is not None:
            work = work.model_copy(update={"compute": "cuda"})
        variant.state = VariantState.RUNNING
        variant.attempts += 1
        inputs = {"model": model.sha256} | {f"{name}.npz": digest for name, digest in splits.items()}
        if network:
            inputs["recovered.pt2"] = network
        # The attempt is in the name, so that a folder of an earlier one cannot be taken for this one's.
        task = Task(task_id=f"{variant.key[:20]}.{variant.attempts}", work=work)
        return _Work("variant", variant.key, variant.key, task, inputs, variant.attempts, tuple(limits))
    return None


def _limits_by_job(session: Session, key: str) -> dict[str, Limits]:
    """The limits of the jobs that wait for a variant; none where one of them wants it whatever it is like.

    That is a job that named no limit, and any job whose baseline it is. A loss that a job allows by default is no reason to stop:
    nobody asked for it, and what is measured then says by how much it would have to be relaxed.
    """
    query = (
        select(CandidateRow.role, CandidateRow.runtime, JobRow)
        .join(JobRow, JobRow.id == CandidateRow.job_id)
        .where(
            CandidateRow.variant_key == key,
            CandidateRow.state.in_([CandidateState.WAITING, CandidateState.COMPRESSING]),
            JobRow.state == JobState.RUNNING,
        )
        .order_by(JobRow.id)
    )
    found: dict[str, Limits] = {}
    for role, runtime, job in session.execute(query):
        limits = _named_limits(jobs_pb2.JobSpec.FromString(job.spec).limits)
        if role != "recipe" or limits == Limits():
            return {}
        if runtime != DEFAULT:
            # The build that counts may be smaller than ONNX Runtime's, which is the one that is known.
            limits = limits.model_copy(update={"max_size_bytes": None})
        kept = found.get(job.id, limits)
        found[job.id] = limits if kept.max_size_bytes is not None else kept
    return found


def _named_limits(given: jobs_pb2.Limits) -> Limits:
    return Limits(
        max_drop_points=given.max_drop_points if given.HasField("max_drop_points") else None,
        max_drop_percent=given.max_drop_percent if given.HasField("max_drop_percent") else None,
        max_size_bytes=given.max_size_bytes if given.HasField("max_size_bytes") else None,
    )


def _stop(session: Session, key: str, reasons: dict[str, str]) -> None:
    """Skip the candidates of the jobs whose limits a variant cannot meet.

    The variant itself has not failed, and waits as if nothing had been done: a job with other limits, also one that was asked
    for meanwhile, makes it.
    """
    row = session.get_one(VariantRow, key)
    row.state, row.attempts, row.reason = VariantState.WAITING, 0, ""
    waiting = select(CandidateRow).where(
        CandidateRow.variant_key == key,
        CandidateRow.job_id.in_(reasons),
        CandidateRow.state.in_([CandidateState.WAITING, CandidateState.COMPRESSING]),
    )
    for candidate in session.scalars(waiting):
        candidate.state = follow(candidate.state, CandidateState.SKIPPED)
        candidate.reason = reasons[candidate.job_id]


def _key_of(
    work: Compress,
    recipe: Recipe,
    model_sha256: str,
    splits: dict[str, str],
    cuda: CudaDevice | None,
    recovered: str,
) -> str:
    return variant_key(
        model_sha256,
        splits,
        recipe,
        metric=work.metric,
        task=work.task,
        seed=work.seed,
        threads=work.threads,
        cuda=cuda,
        recovered=recovered,
    )


def check_device(facts: CompressFacts, cuda: CudaDevice | None) -> None:
    """Raise Conflict where something was not trained on the device that stands in its key (None: on the processor)."""
    used = facts.environment.get("compute", "cpu")
    expected = "cpu" if cuda is None else cuda.described()
    if used != expected:
        raise Conflict(
            f"it was trained on {used}, and this server found {expected} when it started; restart the server, so that it "
            "finds what is there now, then resume the job"
        )


def _rename(session: Session, variant: VariantRow, key: str) -> None:
    """Let those who wait for a variant wait for what this server would really make.

    Its key was made under other versions, another number of threads or for another device to train on, before the server was
    started anew: bytes of now must not bear the name of then.
    """
    _log.info(
        "variant %s was planned under other versions, threads or --compute; it is made as %s",
        variant.key[:10],
        key[:10],
    )
    present = session.get(VariantRow, key)
    if present is None:
        copied = {column.name: getattr(variant, column.name) for column in VariantRow.__table__.columns}
        session.add(VariantRow(**copied | {"key": key, "attempts": 0}))
        session.flush()
    elif present.state == VariantState.FAILED:
        present.state, present.attempts, present.reason = VariantState.WAITING, 0, ""
    waiting = select(CandidateRow).where(
        CandidateRow.variant_key == variant.key,
        CandidateRow.state.in_([CandidateState.WAITING, CandidateState.COMPRESSING]),
    )
    for candidate in session.scalars(waiting):
        candidate.variant_key = key
        if candidate.build_id:
            candidate.build_id = want_build(session, key, candidate.runtime)
    session.flush()


def _keep(session: Session, key: str, facts: CompressFacts, held: dict[str, Any]) -> None:
    row = session.get_one(VariantRow, key)
    row.state, row.reason = VariantState.DONE, ""
    row.facts, row.held = facts.model_dump(), held
    row.seconds = sum(w["end_monotonic_ns"] - w["begin_monotonic_ns"] for w in held["windows"]) / 1e9
    if facts.trainable is not None:
        keep_artifact(session, facts.trainable.sha256, facts.trainable.size_bytes)
    for build in facts.builds:
        for one in build.files():
            keep_artifact(session, one.sha256, one.size_bytes)
        name = build_key(key, build.runtime, build.format)
        if session.get(BuildRow, name) is None:
            session.add(_build_row(name, key, build))


def _build_row(name: str, key: str, build: Build) -> BuildRow:
    return BuildRow(
        id=name,
        variant_key=key,
        runtime=build.runtime,
        format=build.format,
        sha256=build.sha256,
        size_bytes=build.size_bytes,
        facts=build.model_dump(),
    )


def _end(session: Session, work: _Work, state: VariantState, reason: str) -> None:
    row = work.found(session)
    row.state, row.reason = state, reason


def _give_back(session: Session, work: _Work) -> None:
    row = work.found(session)
    if row.state == VariantState.RUNNING:
        row.state, row.attempts = VariantState.WAITING, max(row.attempts - 1, 0)


def _wanted(session: Session, key: str) -> bool:
    query = (
        select(CandidateRow.id)
        .join(JobRow, JobRow.id == CandidateRow.job_id)
        .where(or_(CandidateRow.variant_key == key, CandidateRow.build_id == key), JobRow.state == JobState.RUNNING)
        .limit(1)
    )
    return session.scalars(query).first() is not None


def jobs_wanting(session: Session, key: str) -> list[str]:
    """The running jobs that have a candidate of this variant."""
    query = (
        select(CandidateRow.job_id)
        .join(JobRow, JobRow.id == CandidateRow.job_id)
        .where(CandidateRow.variant_key == key, JobRow.state == JobState.RUNNING)
        .distinct()
    )
    return list(session.scalars(query))
