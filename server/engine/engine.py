"""The engine: what the services call, and the loops that carry jobs on. All its state is in the database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import CudaDevice
from fleetfit.core.durations import duration
from fleetfit.core.errors import ChildFailed, Conflict, ExhaustedResource, FleetfitError, NotFound
from fleetfit.core.waiting import within
from fleetfit.proto.methods import health_method, named_method
from fleetfit.proto.v1 import devices_pb2, jobs_pb2, models_pb2, reports_pb2, scoring_pb2, work_pb2
from fleetfit.server.engine.builds import find_build
from fleetfit.server.engine.compressing import Compressor, jobs_wanting
from fleetfit.server.engine.estimates import plan_message
from fleetfit.server.engine.executor import Executor
from fleetfit.server.engine.facts import read_facts
from fleetfit.server.engine.fleet import Fleet
from fleetfit.server.engine.flow import advance
from fleetfit.server.engine.health import HealthSettings
from fleetfit.server.engine.ingestion import Ingestion
from fleetfit.server.engine.jobs import Request, cancel_job, insert_job, job_message, resume_job
from fleetfit.server.engine.leases import DEFAULT_LEASE_MS, Leases, fail_task
from fleetfit.server.engine.library import NO_PARTS, Library
from fleetfit.server.engine.lookup import find_device, find_job
from fleetfit.server.engine.progress import Pace, job_progress
from fleetfit.server.engine.scoring import Scoring
from fleetfit.server.engine.states import ENDED_JOB, JobState, TaskState
from fleetfit.server.engine.variants import find_variant
from fleetfit.server.golden import golden
from fleetfit.server.report.build import build_report
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import LOCAL_OWNER, DeviceRow, JobRow, TaskRow, VariantRow

_log: Final = logging.getLogger(__name__)
_MOST_LISTED: Final = 50
_MOST_FAILURES: Final = 5
_STUCK: Final = (
    "carrying the job on met a bug of the server's; its log has the details, please report it, then resume the job"
)
_REPORTABLE: Final = "only a job that has ended has a report; wait for it with `fleetfit jobs watch`"


@dataclass(frozen=True)
class Settings:
    """What a server's administrator may choose."""

    method: str = "standard"
    """Name of the measuring method (fleetfit.proto.methods)."""
    compress_threads: int = 1
    """Threads of a compression child; part of every variant's key."""
    cuda: CudaDevice | None = None
    """What training computes on, None for the processor; part of the key of every variant that is trained."""
    device_wait_s: float = 24 * 3600.0
    """For how long a job waits for a device that is away before it gives up on it."""
    lease_ms: int = DEFAULT_LEASE_MS
    tick_s: float = 1.0
    """Between two looks at leases and absent devices."""
    health_every_s: float = 0.0
    """Between two health checks of a device, which begin when its agent starts; 0: only where a person asks."""


class Engine:
    """Plans, runs and reports jobs.

    `fleet`, `library` and `leases` are its parts that the services reach directly for devices, models and datasets, and for
    what a device may download. Every method may be called from one event loop only, after `start`.
    """

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        executor: Executor,
        scratch: Path,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._database = database
        self._store = store
        self._news: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._bells = {name: asyncio.Event() for name in ("intake", "compress", "ingest", "flow")}
        # In order, so that a job that cannot be advanced waits behind all others before it is tried again.
        self._to_advance: dict[str, None] = {}
        # How often in a row a job could not be advanced.
        self._failures: Counter[str] = Counter()
        self._loops: list[asyncio.Task[None]] = []
        self._leased_at: dict[str, float] = {}
        self._measure_s: list[float] = []
        check_every_ms = int(self.settings.health_every_s * 1000)
        self.fleet = Fleet(database, check_every_ms)
        self.library = Library(database, store, executor, self._publish)
        self.leases = Leases(
            database,
            store,
            named_method(self.settings.method),
            lease_ms=self.settings.lease_ms,
            changed=self._may_advance,
            health=HealthSettings(check_every_ms, health_method(self.settings.method)),
        )
        self.scoring = Scoring(database, store, lease_ms=self.settings.lease_ms, changed=self._may_advance)
        self._compressor = Compressor(
            database, store, executor, self.settings.compress_threads, self._variant_changed, self.settings.cuda
        )
        self._ingestion = Ingestion(database, store, scratch / "reports", self._may_advance)
        # Variants whose rows changed, until the flow loop has found the jobs that want them.
        self._changed_variants: set[str] = set()

    async def start(self) -> None:
        """Go on where an earlier life ended."""
        self._store.sweep()
        for path in (*golden().files.values(), golden().samples):
            await asyncio.to_thread(self._store.put, path)
        await self._compressor.recover()
        await self.leases.extend_all()
        await self.scoring.extend_all()
        self._to_advance.update(dict.fromkeys(await self._running_jobs()))
        steps = {
            "intake": self.library.check_next,
            "compress": self._compressor.make_next,
            "ingest": self._settle_next,
            "flow": self._advance_next,
        }
        self._loops = [asyncio.create_task(self._forever(name, step)) for name, step in steps.items()]
        self._loops.append(asyncio.create_task(self._tick()))

    async def stop(self) -> None:
        """End all children and loops; what they were doing is done again after the next start."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []

    # Models and datasets

    async def push_model(
        self, name: str, sha256: str, form: str, owner: str = LOCAL_OWNER, parts: Mapping[str, str] = NO_PARTS
    ) -> AsyncIterator[models_pb2.PushModelResponse]:
        """Register uploaded content, then tell how its check goes; the last message has the accepted or refused model.

        `parts` are digests of its `pre` and `post`. Closing the stream does not stop the check. Raises NotFound where content
        was not uploaded.
        """
        model_id = await self.library.push_model(name, sha256, form, owner, parts)
        self._bells["intake"].set()
        with self._listening(model_id) as news:
            while (model := await self.library.model(model_id)).state == models_pb2.INTAKE_STATE_CHECKING:
                yield models_pb2.PushModelResponse(progress=self.library.progress.get(model_id))
                await _next(news)
        yield models_pb2.PushModelResponse(model=model)

    async def push_dataset(
        self, request: models_pb2.PushDatasetRequest
    ) -> AsyncIterator[models_pb2.PushDatasetResponse]:
        """As `push_model`, for arrays."""
        dataset_id = await self.library.push_dataset(request)
        self._bells["intake"].set()
        with self._listening(dataset_id) as news:
            while (dataset := await self.library.dataset(dataset_id)).state == models_pb2.INTAKE_STATE_CHECKING:
                yield models_pb2.PushDatasetResponse(progress=self.library.progress.get(dataset_id))
                await _next(news)
        yield models_pb2.PushDatasetResponse(dataset=dataset)

    async def push_recovered(
        self, variant: str, sha256: str, owner: str = LOCAL_OWNER
    ) -> AsyncIterator[models_pb2.PushRecoveredResponse]:
        """As `push_model`, for a person's variant after training. Raises NotFound, InvalidInput or Conflict for the variant."""
        key = await self.library.push_recovered(variant, sha256, owner)
        self._bells["intake"].set()
        with self._listening(key) as news:
            while (found := await self.library.recovered(key)).state == models_pb2.INTAKE_STATE_CHECKING:
                yield models_pb2.PushRecoveredResponse(progress=self.library.progress.get(key))
                await _next(news)
        yield models_pb2.PushRecoveredResponse(recovered=found)

    # Jobs

    async def plan(self, spec: jobs_pb2.JobSpec, owner: str = LOCAL_OWNER) -> jobs_pb2.Plan:
        """What a job would do. Raises InvalidInput (or a kind of it) or NotFound."""

        def read(session: Session) -> jobs_pb2.Plan:
            request = Request(session, spec, self.settings.compress_threads, owner, self.settings.cuda)
            known = {c.variant_key: session.get(VariantRow, c.variant_key) for c in request.candidates}
            made = {key for key, row in known.items() if row is not None and row.state == "done"}
            return plan_message(
                request.candidates,
                request.model,
                request.data,
                made,
                self._pace(),
                request.notes,
                sustained_s=spec.sustained_ms / 1000,
                scaling_s=self._pace().scaling_s if spec.scaling else 0.0,
                device_samples=spec.device_samples,
                profile=spec.profile,
            )

        return await self._database.read(read)

    async def create_job(self, spec: jobs_pb2.JobSpec, request_id: str, owner: str = LOCAL_OWNER) -> jobs_pb2.Job:
        """Start a job; the same `request_id` again gives the same job. Raises as `plan` does."""

        def write(session: Session) -> str:
            if request_id:
                known = session.scalars(select(JobRow).where(JobRow.request_id == request_id)).first()
                if known is not None:
                    if known.spec != spec.SerializeToString(deterministic=True):
                        raise Conflict("another job was asked for with this request_id; use a new one")
                    return known.id
            request = Request(session, spec, self.settings.compress_threads, owner, self.settings.cuda)
            return insert_job(session, request, owner, request_id or new_id()).id

        job_id = await self._database.write(write)
        self._may_advance(job_id)
        self._bells["compress"].set()
        return await self.job(job_id)

    async def job(self, text: str) -> jobs_pb2.Job:
        """One job by its id, the end of it, or `last`. Raises NotFound."""
        return await self._database.read(lambda session: self._message(session, find_job(session, text)))

    async def jobs(self, limit: int = 0) -> list[jobs_pb2.Job]:
        """The newest jobs."""
        query = select(JobRow).order_by(JobRow.id.desc()).limit(limit if limit > 0 else _MOST_LISTED)
        return await self._database.read(
            lambda session: [self._message(session, row) for row in session.scalars(query)]
        )

    async def cancel(self, text: str) -> jobs_pb2.Job:
        """Stop a running job. Raises Conflict where it has ended."""

        def write(session: Session) -> tuple[str, list[tuple[str, str]]]:
            job = find_job(session, text)
            return job.id, cancel_job(session, job)

        job_id, told = await self._database.write(write)
        for device_id, task_id in told:
            self.fleet.cancel(device_id, task_id)
        await self._compressor.drop_unwanted()
        self._publish(job_id)
        return await self.job(job_id)

    async def resume(self, text: str) -> jobs_pb2.Job:
        """Go on with a job that was cancelled or in which something failed. Raises Conflict where there is nothing to do."""

        def write(session: Session) -> str:
            job = find_job(session, text)
            resume_job(session, job)
            return job.id

        job_id = await self._database.write(write)
        self._may_advance(job_id)
        self._bells["compress"].set()
        for device in await self.fleet.all():
            self.fleet.wake(device.device_id)
        return await self.job(job_id)

    async def watch(self, text: str) -> AsyncIterator[jobs_pb2.Job]:
        """The job now, then after every change, until it has ended."""
        job = await self.job(text)
        last = b""
        with self._listening(job.job_id) as news:
            while True:
                job = await self.job(job.job_id)
                content = job.SerializeToString(deterministic=True)
                if content != last:
                    last = content
                    yield job
                if job.state not in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING):
                    return
                await _next(news)

    # Agents

    async def lease(self, device_id: str, session_number: int) -> work_pb2.TaskLease | None:
        """The device's next task. Raises Superseded for an older session."""
        lease = await self.leases.lease(device_id, session_number)
        if lease is not None and not lease.measure.health:
            if not lease.measure.scaling and not lease.measure.profile:
                # Curves take minutes and profiles seconds, which says nothing about the next measurement.
                self._leased_at[lease.task_id] = asyncio.get_running_loop().time()
            self._publish(lease.measure.job_id)
        return lease

    async def renew(self, device_id: str, request: work_pb2.RenewLeaseRequest) -> work_pb2.RenewLeaseResponse:
        """More time for a task. Raises LeaseLost or Superseded."""
        lease_ms, cancelled, job_id = await self.leases.renew(device_id, request)
        self._publish(job_id)
        return work_pb2.RenewLeaseResponse(lease_ms=lease_ms, cancelled=cancelled)

    async def report(self, device_id: str, request: work_pb2.ReportTaskRequest) -> work_pb2.ReportTaskResponse:
        """Take a task's result. Raises LeaseLost, Superseded, or NotFound where the result was not uploaded."""
        first = await self.leases.report(device_id, request)
        began = self._leased_at.pop(request.task_id, None)
        if first and began is not None:
            self._measure_s = [*self._measure_s[-19:], asyncio.get_running_loop().time() - began]
        self._bells["ingest"].set()
        return work_pb2.ReportTaskResponse(first=first)

    async def may_download(self, device_id: str, sha256: str) -> bool:
        """Whether one of the device's open tasks reads this content."""
        return await self.leases.may_download(device_id, sha256)

    async def set_aside(self) -> list[devices_pb2.Device]:
        """The devices that get no work until a health check passes or a person clears them."""
        return [device for device in await self.fleet.all() if device.set_aside]

    # Scorers

    async def report_scores(self, owner: str, request: scoring_pb2.ReportScoringRequest) -> bool:
        """Take a scorer's scores, or why there are none. Raises LeaseLost, or NotFound where they were not uploaded."""
        first = await self.scoring.report(owner, request)
        self._bells["ingest"].set()
        return first

    # Reports

    async def report_json(self, text: str, device: str = "") -> str:
        """A job's report object, of one device or all. Raises Conflict while the job runs, NotFound for the device."""

        def read(session: Session) -> tuple[str | None, Any, str]:
            job = find_job(session, text)
            if job.state not in ENDED_JOB:
                raise Conflict(_REPORTABLE)
            name = find_device(session, device).name if device else ""
            return job.report, None if job.report else read_facts(session, job), name

        stored, facts, name = await self._database.read(read)
        content = stored or (await asyncio.to_thread(build_report, facts)).model_dump_json(by_alias=True)
        if not name:
            return content
        report = json.loads(content)
        report["devices"] = [found for found in report["devices"] if found["device"] == name]
        if not report["devices"]:
            raise NotFound(f"the job was not run on '{name}'; leave --device out to see all", field="device")
        return json.dumps(report)

    async def report_html(self, text: str, device: str = "") -> bytes:
        """The same as one self-contained page."""
        return await self._ingestion.render(await self.report_json(text, device))

    async def build(self, text: str, device: str, variant: str, runtime: str = "") -> reports_pb2.GetBuildResponse:
        """The build to deploy, with its manifest. Raises NotFound or Conflict."""
        report = json.loads(await self.report_json(text))
        return await self._database.read(
            lambda session: find_build(session, find_job(session, text), report, device, variant, runtime)
        )

    async def variant(self, text: str, owner: str) -> models_pb2.GetVariantResponse:
        """The trainable network of a person's variant. Raises NotFound, InvalidInput or Conflict."""
        return await self._database.read(lambda session: find_variant(session, text, owner))

    # What happens by itself

    async def _settle_next(self) -> bool:
        if await self._ingestion.settle_next() or await self._ingestion.settle_scores_next():
            return True
        checked = await self._ingestion.settle_check_next()
        if checked:
            # It waited for the verdict.
            self.fleet.wake(checked)
        return bool(checked)

    def _message(self, session: Session, job: JobRow) -> jobs_pb2.Job:
        message = job_message(session, job)
        online = {row.id: self.fleet.online(row.id) for row in session.scalars(select(DeviceRow))}
        missing = self.scoring.missing(session, job)
        progress = job_progress(session, job, self._pace(), self._compressor.progress, online, missing)
        message.progress.CopyFrom(progress)
        return message

    def _pace(self) -> Pace:
        scaling_s = named_method(self.settings.method).scaling_limit_ns / 1e9
        if not self._measure_s:
            return Pace(scaling_s=scaling_s)
        return Pace(measure_s=sum(self._measure_s) / len(self._measure_s), scaling_s=scaling_s)

    def _publish(self, name: str) -> None:
        for event in self._news.get(name, ()):
            event.set()

    def _may_advance(self, job_id: str) -> None:
        self._to_advance[job_id] = None
        self._bells["flow"].set()
        self._publish(job_id)

    def _variant_changed(self, key: str) -> None:
        self._changed_variants.add(key)
        self._bells["flow"].set()

    @contextlib.contextmanager
    def _listening(self, name: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._news[name].add(event)
        try:
            yield event
        finally:
            self._news[name].discard(event)
            if not self._news[name]:
                del self._news[name]

    async def _forever(self, name: str, step: Callable[[], Awaitable[bool]]) -> None:
        bell = self._bells[name]
        while True:
            bell.clear()
            try:
                busy = await step()
            except FleetfitError as error:
                _log.error("%s: %s %s", name, error.message, error.private)
                busy = False
            except Exception:
                # One broken row must not end the loop for all other jobs.
                _log.exception("%s", name)
                busy = False
            if not busy:
                await within(bell.wait(), self.settings.tick_s)

    async def _advance_next(self) -> bool:
        changed, self._changed_variants = self._changed_variants, set()
        for key in changed:
            wanting = await self._database.read(lambda session, key=key: jobs_wanting(session, key))  # type: ignore[misc]
            self._to_advance.update(dict.fromkeys(wanting))
            for job_id in wanting:
                self._publish(job_id)
        if not self._to_advance:
            return False
        job_id = next(iter(self._to_advance))
        del self._to_advance[job_id]
        try:
            await self._go_on(job_id)
        except BaseException as error:
            # A full disk is waited for; a bug would only be met again and again.
            lasting = isinstance(error, Exception) and not isinstance(error, ExhaustedResource)
            self._failures[job_id] += lasting
            self._to_advance[job_id] = None
            if self._failures[job_id] < _MOST_FAILURES:
                raise
            _log.exception("job %s", job_id)
            await self._end(job_id, JobState.FAILED, _STUCK)
        self._failures.pop(job_id, None)
        return True

    async def _go_on(self, job_id: str) -> None:
        wanted = await self._database.write(lambda session: advance(session, session.get_one(JobRow, job_id)))
        for device_id in wanted.wake:
            self.fleet.wake(device_id)
        self._publish(job_id)
        try:
            for subset in wanted.subsets:
                await self._ingestion.take_subset(subset)
                self._to_advance[job_id] = None
            for device_id, split, raw in wanted.drops:
                await self._ingestion.compare(job_id, device_id, split, raw)
                self._to_advance[job_id] = None
        except ChildFailed as error:
            _log.error("job %s: %s %s", job_id, error.message, error.private)
            await self._end(job_id, JobState.FAILED, error.message)
            return
        if wanted.report:
            facts = await self._database.read(lambda session: read_facts(session, session.get_one(JobRow, job_id)))
            report = await asyncio.to_thread(build_report, facts)
            await self._end(job_id, JobState.DONE, "", report.model_dump_json(by_alias=True))

    async def _end(self, job_id: str, state: JobState, reason: str, report: str | None = None) -> None:
        def write(session: Session) -> None:
            job = session.get_one(JobRow, job_id)
            if job.state == JobState.RUNNING:
                job.state, job.reason, job.report, job.finished_ms = state, reason, report, now_ms()

        await self._database.write(write)
        self._publish(job_id)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.settings.tick_s)
            try:
                for device_id in await self.leases.expire():
                    self.fleet.wake(device_id)
                await self.scoring.expire()
                await self._give_up_on_the_absent()
                await self._use_up_budgets()
            except ExhaustedResource as error:
                _log.error("%s", error.message)
            except Exception:
                _log.exception("tick")

    async def _give_up_on_the_absent(self) -> None:
        wait_s = self.settings.device_wait_s

        def waited_for(session: Session) -> list[TaskRow]:
            # Both: a device that was away long before it was asked for is given its time too.
            asked = TaskRow.created_ms < now_ms() - wait_s * 1000
            waiting = session.scalars(select(TaskRow).where(TaskRow.state == TaskState.WAITING, asked))
            return [task for task in waiting if self.fleet.away_s(task.device_id) > wait_s]

        def give_up(session: Session) -> None:
            for task in waited_for(session):
                name = session.get_one(DeviceRow, task.device_id).name
                reason = f"{name} was away for more than {duration(wait_s)}; start its agent, then resume the job"
                fail_task(session, task, reason)

        if await self._database.read(lambda session: bool(waited_for(session))):
            await self._database.write(give_up)
            for job_id in await self._running_jobs():
                self._may_advance(job_id)

    async def _use_up_budgets(self) -> None:
        def read(session: Session) -> list[str]:
            running = session.scalars(select(JobRow).where(JobRow.state == JobState.RUNNING))
            return [row.id for row in running if jobs_pb2.JobSpec.FromString(row.spec).budget_ms]

        for job_id in await self._database.read(read):
            self._may_advance(job_id)

    async def _running_jobs(self) -> list[str]:
        query = select(JobRow.id).where(JobRow.state == JobState.RUNNING)
        return await self._database.read(lambda session: list(session.scalars(query)))


async def _next(news: asyncio.Event) -> None:
    """Wait for the next change; at most a second, for the time left goes down by itself."""
    await within(news.wait(), 1.0)
    # Changes come in bursts, and each look reads the whole job.
    await asyncio.sleep(0.05)
    news.clear()
