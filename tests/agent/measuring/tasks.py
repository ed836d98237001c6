"""Measuring tasks over tiny builds, carried out in this process or, whole, in children."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from fleetfit.agent.measuring import trials
from fleetfit.agent.measuring.endings import EXIT_NOT_LOADABLE
from fleetfit.proto.v1 import common_pb2, measurement_pb2

MS = 1_000_000
# Figures mean nothing here; there must only be some.
QUICK = measurement_pb2.Method(
    pair_processes=2,
    blocks_per_process=3,
    block_ns=1 * MS,
    warmup_limit_ns=20 * MS,
    solo_samples=20,
    solo_limit_ns=100 * MS,
    child_limit_ns=60_000 * MS,
    quiet_limit_ns=0,
)


def build_ref(name: str, *, batch: int = -1, runtime: str = "onnxruntime") -> measurement_pb2.BuildRef:
    return measurement_pb2.BuildRef(
        artifact_name=name,
        runtime=runtime,
        format="onnx",
        build_id=name,
        inputs=[common_pb2.TensorSpec(name="x", dtype="float32", shape=[batch, 4])],
        outputs=[common_pb2.TensorSpec(name="scores", dtype="float32", shape=[batch, 3])],
    )


def prepare(
    folder: Path,
    candidate: bytes,
    *,
    baseline: bytes | None = None,
    data: Mapping[str, NDArray[Any]] | None = None,
    metric: str = "accuracy",
    batch: int = -1,
    runtime: str = "onnxruntime",
    method: Mapping[str, float | str] | None = None,
    **changed: Any,
) -> measurement_pb2.MeasureTask:
    """Lay a task out in `folder` as the agent does, and return it."""
    task = measurement_pb2.MeasureTask(
        job_id="job", candidate=build_ref("candidate.onnx", batch=batch, runtime=runtime), threads=1, batch=1
    )
    task.method.CopyFrom(QUICK)
    for name, value in (method or {}).items():
        setattr(task.method, name, value if name in ("precision", "power_mode") else int(value))
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "in" / "candidate.onnx").write_bytes(candidate)
    if baseline is not None:
        task.baseline.CopyFrom(build_ref("baseline.onnx"))
        (folder / "in" / "baseline.onnx").write_bytes(baseline)
    if data is not None:
        task.data_artifact_name, task.split, task.metric = "validation.npz", "validation", metric
        np.savez(folder / "in" / "validation.npz", **data)  # type: ignore[arg-type]
    for name, value in changed.items():
        setattr(task, name, value)
    (folder / "task.pb").write_bytes(task.SerializeToString())
    return task


def solo_here(folder: Path) -> measurement_pb2.MeasurementResult:
    """The solo trial, in this process."""
    result = measurement_pb2.MeasurementResult()
    trial_here(folder, result, "solo", 0)
    return result


def pair_here(folder: Path, number: int = 0) -> measurement_pb2.PairRun:
    """A pair trial, in this process."""
    run = measurement_pb2.PairRun()
    trial_here(folder, run, "pair", number)
    return run


def trial_here(folder: Path, message: Message, kind: str, number: int, engine: int = 0) -> None:
    """One trial, in this process, into `message`."""
    out = folder / "out.pb"
    code = trials.main([str(folder), str(out), kind, str(number), str(engine)])
    said = out.with_suffix(".error")
    assert code == 0, said.read_text() if said.exists() else code
    message.ParseFromString(out.read_bytes())


def refused_here(folder: Path, kind: str = "solo") -> str:
    """The sentence by which a trial in this process refuses the task."""
    out = folder / "out.pb"
    assert trials.main([str(folder), str(out), kind, "0"]) == EXIT_NOT_LOADABLE
    assert not out.exists()
    return str(json.loads(out.with_suffix(".error").read_text())["message"])


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "fleetfit.agent.measuring", str(folder)]


def measure(folder: Path, **environment: str) -> measurement_pb2.MeasurementResult:
    """The whole measurement, as the agent starts it."""
    ended = subprocess.run(
        command(folder), env=os.environ | environment, cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    result = measurement_pb2.MeasurementResult()
    result.ParseFromString(gzip.decompress((folder / "result.pb.gz").read_bytes()))
    return result
