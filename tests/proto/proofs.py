"""Statements and samples for self-proofs, made up: what is tested with them is the file."""

from __future__ import annotations

import datetime
import random
from typing import Any

from fleetfit.proto.selfproof import CheckedRuntime, Code, Raw, Statement, board_of, figures_of, seal
from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2

MADE = datetime.datetime(2026, 11, 20, 8, 30, tzinfo=datetime.timezone.utc)


def samples(seed: int = 0) -> Raw:
    numbers = random.Random(seed)

    def some(count: int) -> list[int]:
        return [numbers.randrange(900_000, 1_100_000) for _ in range(count)]

    raw = Raw(status=measurement_pb2.MEASUREMENT_STATUS_MEASURED, quiet=True, runtime="onnxruntime")
    raw.solo.latency_ns.extend(some(700))
    raw.solo.load_ns, raw.solo.peak_memory_bytes, raw.solo.floor_memory_bytes = 5_000_000, 90_000_000, 60_000_000
    raw.readings.add(temperature_celsius=41.5)
    for number in range(6):
        run = raw.pairs.add(candidate_loaded_first=number % 2 == 0)
        for _ in range(5):
            for candidate in (True, False):
                run.blocks.add(candidate=candidate).latency_ns.extend(some(20))
    return raw


def statement(snapshot: snapshot_pb2.DeviceSnapshot, raw: Raw, **changed: Any) -> Statement:
    runtime = CheckedRuntime(
        name="onnxruntime",
        available=True,
        version="1.23.2",
        contract={"outputs come by name": "", "closing twice is closing once": ""},
        figures=figures_of(raw),
    )
    absent = CheckedRuntime(name="ncnn", available=False, reason="it is not installed")
    facts: dict[str, Any] = {
        "made": MADE,
        "code": Code(version="0.1.0", files="0" * 64),
        "board": board_of(snapshot),
        "emulated": snapshot.emulated,
        "threads": 4,
        "method": "standard",
        "condition": {"governor": "ondemand"},
        "findings": [],
        "runtimes": [runtime, absent],
    }
    return Statement(**(facts | changed))


def proof(snapshot: snapshot_pb2.DeviceSnapshot, **changed: Any) -> bytes:
    raw = samples()
    return seal(statement(snapshot, raw, **changed), snapshot, {"onnxruntime": raw})
