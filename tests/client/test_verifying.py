"""Reports made as the server makes them, from raw results, and computed again as a reader does."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetfit.client.verifying import Verification, read_raw, verify_report
from fleetfit.core.errors import InvalidData
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.build import build_report
from fleetfit.server.report.drops import Scored, compare
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts, LimitFacts

from ..server.report.raw import add_chain, raw_result, write_raw
from ..server.report.test_energy import trace

Raw = measurement_pb2.MeasurementResult


def scores(wrong: int, seed: int) -> list[float]:
    return [float(one) for one in np.random.default_rng(seed).permutation(np.arange(200) >= wrong)]


def raw_of(ratio: float, wrong: int, seed: int) -> Raw:
    raw = raw_result(ratio=ratio, processes=6, seed=seed, scores=scores(wrong, seed))
    for at, run in enumerate(raw.pairs):
        run.candidate_loaded_first = at % 2 == 0
    raw.pairs_end, raw.precision = measurement_pb2.SAMPLING_END_PRECISE, 0.01
    return raw


class Made:
    """A report of two runtimes and two conditions, and the raw results that it names."""

    def __init__(self) -> None:
        self.raws: dict[str, Raw] = {}
        rows: list[tuple[str, str, str, int, float, int]] = [
            ("original", "original", "onnxruntime", 1, 1.0, 20),
            ("original-retrained", "control", "onnxruntime", 1, 1.0, 18),
            ("small", "recipe", "onnxruntime", 1, 2.0, 25),
            ("original", "original", "openvino", 1, 1.3, 20),
            ("small", "recipe", "openvino", 1, 1.8, 25),
            ("original", "original", "onnxruntime", 4, 1.0, 20),
            ("small", "recipe", "onnxruntime", 4, 0.9, 25),
        ]
        candidates = [self._candidate(at, *row) for at, row in enumerate(rows)]
        candidates[2] = self._chained(self._warm(candidates[2]), 1.5)
        candidates[0] = self._chained(candidates[0], None)
        by_split = {
            split: compare("accuracy", [self._scored(c, split) for c in candidates if self._has(c, split)])
            for split in ("measured", "test")
        }
        device = DeviceFacts(
            device_id="1", name="lab", profile="x86-avx2", snapshot_id="s", emulated=False, candidates=tuple(candidates),
            validation_drops=by_split["measured"], test_drops=by_split["test"],
        )  # fmt: skip
        facts = JobFacts(
            job_id="j", kind="compress", model="net:1", metric="accuracy", objective="latency",
            limits=LimitFacts(max_drop_points=9.0), accept_emulated=False, created_ms=0, devices=(device,),
        )  # fmt: skip
        # Through JSON, as it travels.
        self.report: dict[str, Any] = json.loads(build_report(facts).model_dump_json(by_alias=True))

    def _candidate(
        self, at: int, recipe: str, role: str, runtime: str, threads: int, ratio: float, wrong: int
    ) -> CandidateFacts:
        raw, test = raw_of(ratio, wrong, at), raw_of(ratio, wrong + 3, 100 + at)
        test.ClearField("solo")
        del test.pairs[:]
        tested = role != "recipe" and threads == 1
        return CandidateFacts(
            id=str(at), variant=f"{at:010x}", recipe=recipe, role=role, runtime=runtime, threads=threads, batch=1,
            state="measured", beside="onnxruntime" if role == "original" else "", size_bytes=1000 + at, parameters=10,
            validation=summarize(raw), test=summarize(test) if tested else None,
            raw={"measured": self._stored(raw)} | ({"test": self._stored(test)} if tested else {}),
        )  # fmt: skip

    def _warm(self, c: CandidateFacts) -> CandidateFacts:
        raw = copy.deepcopy(self.raws[c.raw["measured"][0]])
        raw.solo.sustained.latency_ns.extend(
            int(one) for one in 1.2e6 * np.random.default_rng(1).lognormal(0, 0.02, 900)
        )
        raw.energy.CopyFrom(trace())
        raw.solo.load_peak_memory_bytes, raw.solo.run_peak_memory_bytes = 26_000_000, 30_000_000
        raw.solo.sustained.every, raw.solo.sustained.calls = 2, 1800
        raw.solo.sustained.window.end_monotonic_ns = 60_000_000_000
        return dataclasses.replace(c, validation=summarize(raw), raw={"measured": self._stored(raw)})

    def _chained(self, c: CandidateFacts, ratio: float | None) -> CandidateFacts:
        raw = add_chain(copy.deepcopy(self.raws[c.raw["measured"][0]]), ratio=ratio)
        return dataclasses.replace(c, validation=summarize(raw), raw={**c.raw, "measured": self._stored(raw)})

    def _stored(self, raw: Raw) -> tuple[str, int]:
        content = raw.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        self.raws[digest] = raw
        return digest, len(content)

    @staticmethod
    def _has(c: CandidateFacts, split: str) -> bool:
        return split in c.raw

    def _scored(self, c: CandidateFacts, split: str) -> Scored:
        raw = self.raws[c.raw[split][0]]
        return Scored(c.id, c.role, (c.threads, c.batch), np.asarray(raw.metric.scores, dtype=np.float32))

    def verified(self) -> Verification:
        return verify_report(self.report, lambda sha256, size_bytes: self.raws[sha256])


@pytest.fixture(scope="module")
def untouched() -> Made:
    return Made()


@pytest.fixture
def made(untouched: Made) -> Iterator[Made]:
    before = copy.deepcopy(untouched.report)
    yield untouched
    untouched.report = before


def test_every_figure_comes_out_as_printed(made: Made) -> None:
    found = made.verified()
    assert found.differences == [] and found.skipped == [] and found.holds
    # Seven measurements, and three of them on the test split too.
    assert found.results == 10
    assert found.figures > 7 * 15


@pytest.mark.parametrize(
    ("at", "place", "figure"),
    [
        (0, ("latency_ms", "p50"), "latency_ms.p50"),
        (2, ("latency_ms", "ci95", 0), "latency_ms.ci95"),
        (2, ("latency_ms", "p95"), "latency_ms.p95"),
        (2, ("latency_ms", "p99_ci95", 1), "latency_ms.p99_ci95"),
        (2, ("latency_ms", "load"), "latency_ms.load"),
        (2, ("latency_ms", "samples"), "latency_ms.samples"),
        (2, ("speedup", "original", "ratio"), "speedup.original.ratio"),
        (4, ("speedup", "original", "ci95", 1), "speedup.original.ci95"),
        (4, ("speedup", "best_uncompressed", "ratio"), "speedup.best_uncompressed.ratio"),
        (6, ("speedup", "best_uncompressed", "ci95", 0), "speedup.best_uncompressed.ci95"),
        (2, ("peak_memory_bytes",), "peak_memory_bytes"),
        (2, ("metric", "value"), "metric.value"),
        (2, ("metric", "ci95", 0), "metric.ci95"),
        (2, ("metric", "n"), "metric.n"),
        (0, ("test_metric", "value"), "test_metric.value"),
        (2, ("drop", "value"), "drop.value"),
        (6, ("drop", "ci95", 1), "drop.ci95"),
        (0, ("test_drop", "value"), "test_drop.value"),
        (2, ("sustained_ms", "p50"), "sustained_ms.p50"),
        (2, ("sustained_ms", "slowdown_ci95", 0), "sustained_ms.slowdown_ci95"),
        (2, ("sampling", "reached"), "sampling.reached"),
        (2, ("energy", "joules"), "energy.joules"),
        (2, ("energy", "ci95", 0), "energy.ci95"),
        (2, ("energy", "busy_watts"), "energy.busy_watts"),
        (2, ("memory", "run_bytes"), "memory.run_bytes"),
        (2, ("end_to_end_ms", "p50"), "end_to_end_ms.p50"),
        (2, ("end_to_end_ms", "ci95", 1), "end_to_end_ms.ci95"),
        (2, ("end_to_end_ms", "p95"), "end_to_end_ms.p95"),
        (2, ("end_to_end_ms", "speedup", "ratio"), "end_to_end_ms.speedup.ratio"),
        (0, ("end_to_end_ms", "speedup", "ratio"), "end_to_end_ms.speedup.ratio"),
        (0, ("parts_ms", "pre", "p50"), "parts_ms.pre.p50"),
        (2, ("parts_ms", "post", "ci95", 0), "parts_ms.post.ci95"),
    ],
)
def test_a_figure_that_was_changed_is_found(made: Made, at: int, place: tuple[str | int, ...], figure: str) -> None:
    part: Any = made.report["devices"][0]["candidates"][at]
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = part[place[-1]] * 1.001 + 0.001
    found = made.verified()
    assert not found.holds
    assert figure in {one.figure for one in found.differences}
    name = made.report["devices"][0]["candidates"][at]["recipe"]
    assert all(one.device == "lab" for one in found.differences)
    assert any(one.candidate.startswith(name) and one.figure == figure for one in found.differences)


def test_a_control_that_was_made_to_look_even_is_found(made: Made) -> None:
    made.report["devices"][0]["controls"][0]["ratio"]["ratio"] = 1.0
    assert {one.figure for one in made.verified().differences} == {"control.ratio"}


def test_samples_that_are_not_those_of_the_report_are_found(made: Made) -> None:
    candidates = made.report["devices"][0]["candidates"]
    candidates[2]["raw"]["measured"] = candidates[4]["raw"]["measured"]
    changed = {one.figure for one in made.verified().differences}
    assert {"latency_ms.p50", "speedup.original.ratio", "sustained_ms"} <= changed


def test_a_figure_without_samples_is_a_difference(made: Made) -> None:
    digest = made.report["devices"][0]["candidates"][2]["raw"]["measured"]["sha256"]
    whole = made.raws[digest]
    alone = copy.deepcopy(whole)
    del alone.pairs[:]
    made.raws[digest] = alone
    try:
        changed = {one.figure for one in made.verified().differences}
    finally:
        made.raws[digest] = whole
    assert {"speedup.original", "latency_ms.p50", "latency_ms.processes"} <= changed


def test_what_cannot_be_computed_again_is_named(made: Made) -> None:
    device = made.report["devices"][0]
    device["candidates"][1]["raw"] = {}
    found = made.verified()
    assert any("original-retrained: the report names no raw samples" in reason for reason in found.skipped)
    old = {"devices": [{"device": "d", "candidates": [{"status": "measured", "recipe": "original"}]}]}
    assert not verify_report(old, lambda sha256, size_bytes: Raw()).holds


def test_raw_results_are_read_as_agents_send_them(tmp_path: Path) -> None:
    raw = raw_of(2.0, 10, 1)
    assert read_raw(write_raw(tmp_path / "raw.pb.gz", raw)) == raw
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(InvalidData, match="cannot be read"):
        read_raw(tmp_path / "other")
