"""A server's engine on real storage, with paper in place of the three slow things: children, agents and statistics.

The state machine, the database, the store and all timing between them are the real ones; compression children are replaced
by ones that write a few bytes, agents by coroutines that call what the services call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import (
    Build,
    Compress,
    CompressFacts,
    CudaDevice,
    DataFacts,
    IntakeModel,
    IntakeRecovered,
    Lower,
    ModelFacts,
    ModelPart,
    PartName,
    RecoveredFacts,
    Score,
    SplitFile,
    Step,
    Stopped,
    Task,
    TaskError,
    TaskProgress,
    TaskResult,
    Tensor,
    Trainable,
    Window,
)
from fleetfit.core.children import ChildOutcome
from fleetfit.core.digests import sha256_bytes, sha256_file
from fleetfit.core.errors import FleetfitError
from fleetfit.proto.v1 import common_pb2, jobs_pb2, models_pb2, snapshot_pb2, work_pb2
from fleetfit.proto.versions import AGENT_CAPABILITIES
from fleetfit.server.engine.engine import Engine, Settings
from fleetfit.server.engine.executor import Finished
from fleetfit.server.engine.ingestion import Ingestion
from fleetfit.server.report.summary import Drops, Figure, Latency, MeasurementSummary, MetricSummary
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.tables import MeasurementRow

from ..databases import open_database

INPUT = Tensor(name="x", dtype="float32", shape=[-1, 4])
OUTPUT = Tensor(name="output", dtype="float32", shape=[-1, 3])
PARTS: dict[PartName, ModelPart] = {
    "pre": ModelPart(inputs=[Tensor(name="pixels", dtype="uint8", shape=[-1, 4])], outputs=[INPUT]),
    "post": ModelPart(inputs=[OUTPUT], outputs=[Tensor(name="label", dtype="int64", shape=[-1])]),
}
PRUNED = "{name: pruned, steps: [activation_pruning: {ratio: 0.5}]}"
TRAINED = "{name: trained, steps: [activation_pruning: {ratio: 0.5}, distill: {epochs: 1}]}"
CUDA = CudaDevice(name="GPU", capability="9.0", cuda="12.8", cudnn="91002", driver="570.86.15", memory_bytes=1)
UNCOMPRESSED_BYTES = 4000
DONE, FAILED, CANCELLED = jobs_pb2.JOB_STATE_DONE, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED
ALL_RECIPES = ("original", "original-retrained", "pruned", "trained")


class PaperExecutor:
    """Children made of paper: deterministic bytes at once, or as a test wants them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: Counter[str] = Counter()
        self.last: dict[str, tuple[Task, dict[str, str]]] = {}
        """The last task of each name, and the digests that it read."""
        self.kills: Counter[str] = Counter()
        """How many more times the child of a recipe is killed."""
        self.errors: dict[str, TaskError] = {}
        self.raises: dict[str, Exception] = {}
        self.losses: dict[str, float] = {}
        """What recipes lose for good, in points: reason to stop where all who want them allow less."""
        self.cuda: CudaDevice | None = None
        """What children that may use CUDA find."""
        self.computes: dict[str, str] = {}
        """Where the children of recipes were to train."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0

    @asynccontextmanager
    async def run(
        self, task: Task, inputs: Mapping[str, str], progress: Callable[[TaskProgress], None]
    ) -> AsyncIterator[Finished]:
        out = self.folder / task.task_id
        out.mkdir(parents=True)
        name = _name(task)
        self.runs[name] += 1
        if isinstance(task.work, Compress):
            self.computes[name] = task.work.compute
        self.last[name] = task, dict(inputs)
        self.running += 1
        try:
            progress(TaskProgress(activity="working", fraction=0.5, remaining_s=1.0))
            await self.gate.wait()
            if name in self.raises:
                raise self.raises[name]
            if self.kills[name]:
                self.kills[name] -= 1
                yield Finished(None, ChildOutcome("out_of_memory", -9), out)
            elif name in self.errors:
                yield Finished(TaskResult(task_id=task.task_id, error=self.errors[name]), ChildOutcome("ok", 0), out)
            elif stopped := self._stopped(task):
                yield Finished(TaskResult(task_id=task.task_id, stopped=stopped), ChildOutcome("ok", 0), out)
            else:
                used = self.cuda if task.wants_cuda() else None
                yield Finished(_result(task, inputs, out, used), ChildOutcome("ok", 0), out)
        finally:
            self.running -= 1
            for file in out.iterdir():
                file.unlink()
            out.rmdir()

    def _stopped(self, task: Task) -> Stopped | None:
        limits = task.work.limits if isinstance(task.work, Compress) else []
        allowed = [math.inf if one.max_drop_points is None else one.max_drop_points for one in limits]
        loss = self.losses.get(_name(task), 0.0)
        reasons = [f"stopped: it loses {loss:g}, where {points:g} is allowed" for points in allowed if points < loss]
        return Stopped(reasons=reasons) if limits and len(reasons) == len(limits) else None


def _name(task: Task) -> str:
    if isinstance(task.work, Lower):
        return f"for {task.work.runtime}"
    if not isinstance(task.work, Compress):
        return task.work.kind
    return task.work.recipe.split("name: ")[1].split("\n")[0] if task.work.recipe else "original"


def _result(task: Task, inputs: Mapping[str, str], out: Path, cuda: CudaDevice | None) -> TaskResult:
    if isinstance(task.work, IntakeModel):
        facts = ModelFacts(
            inputs=[INPUT], outputs=[OUTPUT], parameters=100, macs=100, recognised_share=1.0, trainable=True,
            parts={name: PARTS[name] for name in task.work.parts},
        )  # fmt: skip
        return TaskResult(task_id=task.task_id, model=facts)
    if isinstance(task.work, Lower):
        name = f"build.{task.work.runtime}"
        (out / name).write_bytes(f"{inputs['model']} {inputs['build.onnx']} {inputs['validation.npz']}".encode())
        lowered = Build(
            file=name, runtime=task.work.runtime, format=task.work.runtime, size_bytes=(out / name).stat().st_size,
            sha256=sha256_file(out / name), inputs=[INPUT], outputs=[OUTPUT],
        )  # fmt: skip
        return TaskResult(task_id=task.task_id, build=lowered)
    if isinstance(task.work, IntakeRecovered):
        network = out / "recovered.pt2"
        network.write_bytes(f"{inputs['variant']} with {inputs['trained']}".encode())
        kept = Trainable(file=network.name, size_bytes=network.stat().st_size, sha256=sha256_file(network))
        return TaskResult(
            task_id=task.task_id, recovered=RecoveredFacts(network=kept, parameters=100, tensors=4, changed=3)
        )
    if not isinstance(task.work, Compress):
        splits = []
        for name in ("train", "validation", "test"):
            (out / f"{name}.npz").write_bytes(f"{name} of {inputs['data']}".encode())
            splits.append({"name": name, "file": f"{name}.npz", "count": 10})
        data = DataFacts(
            inputs=[INPUT.model_copy(update={"shape": [30, 4]})],
            targets=Tensor(name="targets", dtype="int64", shape=[30]),
            task="classification",
            classes=3,
            metric="accuracy",
            splits=[SplitFile.model_validate(split) for split in splits],
        )
        return TaskResult(task_id=task.task_id, data=data)
    # Only recipes make smaller: the control is the original, trained on.
    padding = " " * UNCOMPRESSED_BYTES if _name(task).startswith("original") else ""
    (out / "build.onnx").write_bytes(f"{inputs['model']} {task.work.recipe}{padding}".encode())
    build = Build(
        file="build.onnx", runtime="onnxruntime", format="onnx", size_bytes=(out / "build.onnx").stat().st_size,
        sha256=sha256_file(out / "build.onnx"), inputs=[INPUT], outputs=[OUTPUT],
    )  # fmt: skip
    layers = out / "variant.pt2"
    layers.write_bytes(f"layers of {inputs['model']} {task.work.recipe}".encode())
    kept = Trainable(file=layers.name, size_bytes=layers.stat().st_size, sha256=sha256_file(layers))
    environment = {"compute": cuda.described() if cuda is not None else "cpu"}
    facts = CompressFacts(
        lineage=_lineage(task.work),
        builds=[build],
        parameters=100,
        macs=100,
        environment=environment,
        trainable=kept,
    )
    window = Window(begin_monotonic_ns=0, end_monotonic_ns=10**9)
    return TaskResult(task_id=task.task_id, compress=facts, held=[window])


def _lineage(work: Compress) -> list[Step]:
    recipe = Recipe.from_yaml(work.recipe) if work.recipe else Recipe.original()
    names = ["original"]
    if work.recovered is None:
        names += [step.pass_name() for step in recipe.steps]
    else:
        names += [*(step.pass_name for step in work.recovered.lineage), "recovered"]
        names += [step.pass_name() for step in recipe.for_builds().steps]
    score = Score(name=work.metric, value=90.0, ci95=(89.0, 91.0), n=10, split="validation")
    return [
        Step(
            pass_name=name, parameters_of_pass={}, parameters=100, macs=100, weight_bytes=400, seconds=0.0,
            metric=score if work.metric else None,
        )
        for name in names
    ]  # fmt: skip


async def paper_child(self: Ingestion, module: str, source: Path, *more: str) -> str:
    """What the report's children would say, from results made of JSON."""
    text = await asyncio.to_thread(source.read_text)
    if module == "analyse":
        return text
    if module == "subset":
        wanted = json.loads(text)
        Path(wanted["data"]).write_bytes(f"{wanted['count']} of {Path(wanted['path']).name}".encode())
        Path(wanted["rows"]).write_bytes(f"rows of {Path(wanted['path']).name}".encode())
        return json.dumps({"count": wanted["count"], "of": 10})
    if module == "golden":
        # A paper agent that notes something about its outputs has got them wrong.
        summary = json.loads(await asyncio.to_thread(Path(json.loads(text)["result"]).read_text))
        return json.dumps({"summary": summary, "wrong": (summary["notes"] or [""])[0]})
    if module == "drops":
        candidates = json.loads(text)["candidates"]
        figure = Figure(value=0.1, low=0.0, high=0.2)
        original = next(c["id"] for c in candidates if c["role"] == "original")
        return Drops(against=original, by_candidate={c["id"]: figure for c in candidates}).model_dump_json()
    return f"<html>{text}</html>"


def measured(lease: work_pb2.TaskLease) -> MeasurementSummary:
    """A plausible result: what recipes made smaller is twice as fast."""
    measure = lease.measure
    sizes = {named.name: named.artifact.size_bytes for named in lease.artifacts}
    fast = sizes[measure.candidate.artifact_name] < UNCOMPRESSED_BYTES
    p50 = Figure(value=1.0 if fast else 2.0, low=0.9, high=2.1)
    return MeasurementSummary(
        status="measured",
        latency=None
        if measure.metric_only
        else Latency(
            p50_ms=p50, p95_ms=3.0, p99_ms=4.0, samples=700, processes=5, load_ms=1.0, first_ms=1.0, steady=True
        ),
        ratio=None if measure.metric_only else Figure(value=2.0 if fast else 1.0, low=1.9 if fast else 0.99, high=2.1),
        peak_memory_bytes=10**6,
        metric=MetricSummary(name="accuracy", split=measure.split, figure=Figure(value=90.0, low=89.0, high=91.0), n=10)
        if measure.metric
        else None,
        runtime=measure.candidate.runtime,
        runtime_version="1",
        agent_version="1",
        method_version="1",
    )


class PaperAgent:
    """One device. Results that were not acknowledged stay in its spool, as a real agent's on its disk."""

    def __init__(self, device_id: str, snapshot: snapshot_pb2.DeviceSnapshot) -> None:
        self.device_id = device_id
        self.snapshot = snapshot
        self.spool: list[tuple[work_pb2.TaskLease, bytes]] = []
        self.measured: Counter[tuple[str, str]] = Counter()
        self.answer: Callable[[work_pb2.TaskLease], MeasurementSummary] = measured
        self.session = 0
        self.life = ""
        self.checks = 0

    async def work(self, house: House) -> None:
        """Connect, report what is spooled, and do tasks until cancelled."""
        engine = house.engine
        request = work_pb2.HelloRequest(
            agent_version="1", snapshot=self.snapshot, capabilities=AGENT_CAPABILITIES, life=self.life
        )
        self.session, _, _ = await engine.fleet.hello(self.device_id, request)
        messages = engine.fleet.attend(self.device_id, self.session)
        try:
            for lease, content in list(self.spool):
                with contextlib.suppress(FleetfitError):
                    await self._report(house, lease, content)
                self.spool.remove((lease, content))
            while True:
                lease = await engine.lease(self.device_id, self.session)
                if lease is None:
                    await messages.get()
                    continue
                for named in lease.artifacts:
                    assert await engine.may_download(self.device_id, named.artifact.sha256)
                content = self.answer(lease).model_dump_json().encode()
                if lease.measure.health:
                    self.checks += 1
                else:
                    self.measured[lease.measure.candidate.build_id, lease.measure.split] += 1
                self.spool.append((lease, content))
                await self._report(house, lease, content)
                self.spool.remove((lease, content))
        finally:
            await engine.fleet.leave(self.device_id, self.session)

    async def _report(self, house: House, lease: work_pb2.TaskLease, content: bytes) -> None:
        reference = await house.upload(content)
        request = work_pb2.ReportTaskRequest(
            session_number=self.session, task_id=lease.task_id, fence=lease.fence, result=reference
        )
        await house.engine.report(self.device_id, request)


class House:
    """One life of a server on a folder."""

    def __init__(
        self, folder: Path, *, executor: PaperExecutor | None = None, settings: Settings | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.executor = executor or PaperExecutor(folder / "paper")
        self.database = open_database(folder / "fleetfit.db")
        self.store = ArtifactStore(folder / "artifacts", floor_bytes=0)
        quick = settings or Settings(method="quick", tick_s=0.05)
        self.engine = Engine(self.database, self.store, self.executor, folder / "tmp", quick)
        self._working: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> House:
        await self.engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for agent in self._working:
            agent.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self.engine.stop()
        await asyncio.to_thread(self.database.close)

    def employ(self, agent: PaperAgent) -> asyncio.Task[None]:
        """Let an agent work until this life ends."""
        task = asyncio.create_task(agent.work(self))
        self._working.append(task)
        return task

    async def upload(self, content: bytes) -> common_pb2.ArtifactRef:
        """Bring content in as a client does."""
        digest = sha256_bytes(content)
        await self.store.receive(digest, len(content), self.store.received(digest), _rest(self.store, digest, content))
        return common_pb2.ArtifactRef(sha256=digest, size_bytes=len(content))

    async def furnish(
        self,
        *names: str,
        flags: Mapping[str, Sequence[str]] = {},  # noqa: B006
        runtimes: Sequence[str] = ("onnxruntime",),
    ) -> list[PaperAgent]:
        """A model, a dataset and devices with these runtimes; `flags` are what the processors of some have."""
        model = await self.upload(b"a model")
        async for _ in self.engine.push_model("net", model.sha256, "pt2"):
            pass
        data = await self.upload(b"some data")
        request = models_pb2.PushDatasetRequest(name="flowers", artifact=data, model="net")
        async for _ in self.engine.push_dataset(request):
            pass
        agents = []
        for name in names:
            device_id, _ = await self.engine.fleet.register(name, ["lab"], "1")
            snapshot = snapshot_pb2.DeviceSnapshot(
                machine="x86_64",
                processor=snapshot_pb2.Processor(model="Test CPU", usable_cores=2, flags=flags.get(name, ())),
                threads=1,
                host_name=name,
                runtimes=[snapshot_pb2.Runtime(name=one, version="1", available=True) for one in runtimes],
            )
            hello = work_pb2.HelloRequest(agent_version="1", snapshot=snapshot, capabilities=AGENT_CAPABILITIES)
            await self.engine.fleet.hello(device_id, hello)
            agents.append(PaperAgent(device_id, snapshot))
        return agents

    async def ended(self, job: str, limit_s: float = 20.0) -> jobs_pb2.Job:
        """Watch a job to its end."""
        last = jobs_pb2.Job()
        async with asyncio.timeout(limit_s):
            async for message in self.engine.watch(job):
                last = message
        return last

    async def report(self, job: str) -> Any:
        return json.loads(await self.engine.report_json(job))

    async def measurements(self) -> Counter[tuple[str, str]]:
        """How often each candidate was measured on each split."""
        query = select(MeasurementRow.candidate_id, MeasurementRow.split)
        return Counter(await self.database.read(lambda session: [tuple(row) for row in session.execute(query)]))


async def _rest(store: ArtifactStore, digest: str, content: bytes) -> AsyncIterator[bytes]:
    yield content[store.received(digest) :]


def request(*recipes: str, devices: tuple[str, ...] = ("all",), **more: Any) -> jobs_pb2.JobSpec:
    """A compression job."""
    sources = [jobs_pb2.RecipeSource(yaml=text) for text in recipes or (PRUNED, TRAINED)]
    return jobs_pb2.JobSpec(
        kind=jobs_pb2.JOB_KIND_COMPRESS, model="net", dataset="flowers", devices=devices, recipes=sources, **more
    )


def outcome(job: jobs_pb2.Job, report: Any) -> Any:
    """What must not depend on what happened on the way."""
    return (
        job.state,
        [(c.device, c.recipe, c.state, c.detail) for c in job.candidates],
        [(d["device"], d["selected"], d["why"], [c["variant"] for c in d["candidates"]]) for d in report["devices"]],
    )


def states(job: jobs_pb2.Job) -> dict[str, str]:
    """The state of each candidate, by its device and recipe."""
    return {f"{c.device} {c.recipe}": c.state for c in job.candidates}
