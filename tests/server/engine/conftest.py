from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import Build, CompressFacts, DataFacts, ModelFacts, SplitFile, Tensor
from fleetfit.proto.v1 import jobs_pb2, snapshot_pb2
from fleetfit.server.engine.ingestion import Ingestion
from fleetfit.server.engine.planning import PlannedData, PlannedDevice, PlannedModel
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import new_id
from fleetfit.server.storage.tables import (
    BuildRow,
    CandidateRow,
    DatasetRow,
    DeviceRow,
    DeviceSnapshotRow,
    JobRow,
    ModelRow,
    TaskRow,
    VariantRow,
)

from ..databases import open_database
from .harness import paper_child

INPUT = Tensor(name="x", dtype="float32", shape=[-1, 4])
OUTPUT = Tensor(name="output", dtype="float32", shape=[-1, 3])
MODEL_FACTS = ModelFacts(
    inputs=[INPUT], outputs=[OUTPUT], parameters=1000, macs=1000, recognised_share=1.0, trainable=True
)
DATA_FACTS = DataFacts(
    inputs=[INPUT.model_copy(update={"shape": [100, 4]})],
    targets=Tensor(name="targets", dtype="int64", shape=[100]),
    task="classification",
    classes=3,
    metric="accuracy",
    splits=[
        SplitFile(name="train", file="train.npz", count=60),
        SplitFile(name="validation", file="validation.npz", count=20),
        SplitFile(name="test", file="test.npz", count=20),
    ],
)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def snapshot(
    *, threads: int = 1, cores: int = 2, runtimes: Sequence[str] = ("onnxruntime",)
) -> snapshot_pb2.DeviceSnapshot:
    return snapshot_pb2.DeviceSnapshot(
        machine="x86_64",
        processor=snapshot_pb2.Processor(model="Test CPU", usable_cores=cores, flags=["avx2"]),
        threads=threads,
        runtimes=[snapshot_pb2.Runtime(name=name, version="1", available=True, formats=["onnx"]) for name in runtimes],
    )


@pytest.fixture
def make_snapshot() -> Callable[..., snapshot_pb2.DeviceSnapshot]:
    return snapshot


@pytest.fixture
def planned_model() -> PlannedModel:
    return PlannedModel(new_id(), "net", digest("model"), "pt2", 4000, MODEL_FACTS)


@pytest.fixture
def planned_data() -> PlannedData:
    splits = {split.name: digest(split.name) for split in DATA_FACTS.splits}
    return PlannedData(new_id(), "flowers", DATA_FACTS, splits, dict.fromkeys(splits, 1000))


@pytest.fixture
def planned_device() -> PlannedDevice:
    return PlannedDevice(new_id(), "pi", snapshot())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path / "fleetfit.db")
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts", floor_bytes=0)


@pytest.fixture
def keep(store: ArtifactStore, tmp_path: Path) -> Callable[[bytes], str]:
    """Put bytes into the store; their digest."""

    def put(content: bytes) -> str:
        path = tmp_path / "to-keep"
        path.write_bytes(content)
        return store.put(path)[0]

    return put


@dataclass
class World:
    """A job with an original and one recipe on one device, built and ready to be measured, as rows."""

    database: Database
    device: str
    job: str
    candidates: list[str]
    tasks: list[str]

    def task(self, number: int = 0) -> dict[str, Any]:
        """The columns of a task."""

        def read(session: Session) -> dict[str, Any]:
            row = session.get_one(TaskRow, self.tasks[number])
            return {column.name: getattr(row, column.name) for column in TaskRow.__table__.columns}

        return self.database.read_now(read)

    def change(self, kind: type[Any], key: str, **values: Any) -> None:
        """Set columns of a row."""

        def write(session: Session) -> None:
            row = session.get_one(kind, key)
            for name, value in values.items():
                setattr(row, name, value)

        self.database.write_now(write)


@pytest.fixture
def world(database: Database) -> World:
    """The rows that a running job has when its builds are made."""
    names = {"model": new_id(), "data": new_id(), "device": new_id(), "job": new_id()}
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, model="net", dataset="flowers", devices=["pi"])
    splits = {
        split.name: {"sha256": digest(split.name), "size_bytes": 1000, "count": split.count}
        for split in DATA_FACTS.splits
    }
    found = World(database, names["device"], names["job"], [], [])

    def write(session: Session) -> None:
        session.add(
            ModelRow(
                id=names["model"], owner="local", name="net", version=1, format="pt2", sha256=digest("model"),
                size_bytes=4000, state="accepted", refusal="", facts=MODEL_FACTS.model_dump(), created_ms=1,
            )
        )  # fmt: skip
        session.add(DeviceSnapshotRow(id="snapshot", content=snapshot().SerializeToString(), created_ms=1))
        session.flush()
        session.add(
            DatasetRow(
                id=names["data"], owner="local", name="flowers", version=1, sha256=digest("data"), test_sha256="",
                model_id=names["model"], seed=0, metric="", state="accepted", refusal="",
                facts=DATA_FACTS.model_dump(), splits=splits, created_ms=1,
            )
        )  # fmt: skip
        session.add(
            DeviceRow(
                id=names["device"], name="pi", labels=[], paused=False, agent_version="1", profile="", profile_reason="",
                session_number=1, snapshot_id="snapshot", enrolled_ms=1, last_seen_ms=1,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            JobRow(
                id=names["job"], owner="local", request_id=new_id(), spec=spec.SerializeToString(),
                model_id=names["model"], dataset_id=names["data"], state="running", reason="", created_ms=1,
                finished_ms=0,
            )
        )  # fmt: skip
        for position, (role, recipe) in enumerate((("original", "original"), ("recipe", "small"))):
            key = digest(recipe)
            build = Build(
                file="build.onnx", runtime="onnxruntime", format="onnx", size_bytes=500, sha256=digest(f"build {recipe}"),
                inputs=[INPUT], outputs=[OUTPUT],
            )  # fmt: skip
            facts = CompressFacts(lineage=[], builds=[build], parameters=1000, macs=1000, environment={})
            session.add(
                VariantRow(
                    key=key, model_id=names["model"], dataset_id=names["data"], recipe=recipe, seed=0, state="done",
                    attempts=1, reason="", facts=facts.model_dump(), seconds=1.0, held=None, created_ms=1,
                )
            )  # fmt: skip
            session.flush()
            session.add(
                BuildRow(
                    id=new_id(), variant_key=key, runtime="onnxruntime", format="onnx", sha256=build.sha256,
                    size_bytes=500, facts=build.model_dump(),
                )
            )  # fmt: skip
            candidate, task = new_id(), new_id()
            session.add(
                CandidateRow(
                    id=candidate, job_id=names["job"], device_id=names["device"], variant_key=key, recipe=recipe,
                    role=role, runtime="onnxruntime", threads=1, batch=1, position=position, state="measuring", reason="",
                )
            )  # fmt: skip
            session.flush()
            session.add(
                TaskRow(
                    id=task, job_id=names["job"], device_id=names["device"], candidate_id=candidate, split="validation",
                    metric_only=False, state="waiting", fence=0, lease_deadline_ms=0, attempts=0, result_sha256="",
                    result_fence=0, progress=None, created_ms=1,
                )
            )  # fmt: skip
            found.candidates.append(candidate)
            found.tasks.append(task)

    database.write_now(write)
    return found


@pytest.fixture
def paper_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at in this process, which saves a child for each."""
    monkeypatch.setattr(Ingestion, "_child", paper_child)
