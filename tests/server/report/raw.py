"""Raw results with known properties, written as agents write them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fleetfit.proto.v1 import measurement_pb2


def raw_result(
    *, ratio: float = 2.0, processes: int = 5, samples: int = 700, scores: Sequence[float] = (), seed: int = 0
) -> measurement_pb2.MeasurementResult:
    """A candidate that takes 1 ms where its baseline takes `ratio` ms, each process a little different."""
    chance = np.random.default_rng(seed)
    result = measurement_pb2.MeasurementResult(
        status=measurement_pb2.MEASUREMENT_STATUS_MEASURED,
        method_version="1",
        agent_version="0.1.0",
        runtime="onnxruntime",
        runtime_version="1.23.2",
        quiet=True,
        condition={"threads": "1", "governor": "performance"},
    )

    def times(ms: float, count: int) -> list[int]:
        return [int(value) for value in ms * 1e6 * chance.lognormal(0, 0.05, count)]

    result.solo.CopyFrom(
        measurement_pb2.SoloRun(
            load_ns=5_000_000, first_inference_ns=2_000_000, latency_ns=times(1.0, samples), steady=True,
            peak_memory_bytes=30_000_000, floor_memory_bytes=20_000_000,
        )
    )  # fmt: skip
    for _ in range(processes):
        slow = float(chance.lognormal(0, 0.02))
        run = result.pairs.add(steady=True)
        for _ in range(6):
            run.blocks.add(candidate=True, latency_ns=times(slow, 5))
            run.blocks.add(candidate=False, latency_ns=times(slow * ratio * float(chance.lognormal(0, 0.01)), 5))
    if len(scores):
        result.metric.CopyFrom(
            measurement_pb2.MetricRun(
                metric="accuracy", split="validation", value=1.0, count=len(scores), scores=list(scores)
            )
        )
    return result


def write_raw(path: Path, result: measurement_pb2.MeasurementResult) -> Path:
    """As an agent spools it."""
    path.write_bytes(gzip.compress(result.SerializeToString()))
    return path


def add_chain(
    result: measurement_pb2.MeasurementResult, *, ratio: float | None = 1.5, processes: int = 6, seed: int = 0
) -> measurement_pb2.MeasurementResult:
    """The same with parts: 2 ms before, 1 ms in the middle, 3 ms behind; the original's chain takes `ratio` times as long."""
    chance = np.random.default_rng(seed)
    link = measurement_pb2.ChainLink
    usual = {link.CHAIN_LINK_WHOLE: 6.1, link.CHAIN_LINK_PRE: 2.0, link.CHAIN_LINK_CORE: 1.0, link.CHAIN_LINK_POST: 3.0}
    if ratio is not None:
        usual[link.CHAIN_LINK_BASELINE] = 6.1 * ratio
    for number in range(processes):
        slow = float(chance.lognormal(0, 0.02))
        run = result.chains.add(steady=True, candidate_loaded_first=number % 2 == 0, parts_runtime_version="1.23.2")
        for _ in range(6):
            for name, ms in usual.items():
                times = (slow * ms * 1e6 * chance.lognormal(0, 0.03, 5)).astype(int)
                run.blocks.add(link=name, latency_ns=[int(one) for one in times])
    return result
