"""Several engines of one build: whose turn it is, and the trials that time them, with a runtime whose engines differ by design."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.measuring import seats, trials
from fleetfit.agent.measuring.engines import EnginesInTurn, several_engines
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.base import Arrays, Availability, LoadedModel, Runtime
from fleetfit.runtimes.samples import WEIGHTS

from .tasks import pair_here, prepare, solo_here, trial_here

# What a call takes by the engine that was prepared last.
STEP_S = 2e-4


class Loaded(LoadedModel):
    def __init__(self, attempt: int) -> None:
        self._seconds = STEP_S * (1 + attempt)

    def run(self, feeds: Arrays) -> dict[str, Any]:
        self.bind(feeds)()
        return {"scores": np.asarray(feeds["x"]) @ WEIGHTS}

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        def call() -> None:
            until = time.perf_counter() + self._seconds
            while time.perf_counter() < until:
                pass

        return call

    def close(self) -> None:
        pass

    def notes(self) -> Sequence[str]:
        return ("its engines are slower by turns",)


class Compiling(Runtime):
    """Its second engine takes twice as long as its first, its third thrice, and so on."""

    name: ClassVar[str] = "compiling"
    formats: ClassVar[Sequence[str]] = ("onnx",)
    compiles: ClassVar[bool] = True
    made: ClassVar[list[tuple[bytes, int]]] = []

    def availability(self) -> Availability:
        return Availability(True, "", "1.0", ("some",))

    def prepare(
        self, build: bytes, feeds: Arrays, *, threads: int, attempt: int = 0, progress: Callable[[float], None] = print
    ) -> None:
        progress(0.5)
        self.made.append((build, attempt))

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        return Loaded(next(attempt for made, attempt in reversed(self.made) if made == build))


@pytest.fixture(autouse=True)
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiling, "made", [])
    for module in (seats, trials):
        monkeypatch.setattr(module, "runtime", lambda name: Compiling())


def lay_out(folder: Path, candidate: bytes = b"candidate", *, itself: bool = False) -> None:
    task = prepare(folder, candidate, baseline=b"baseline", runtime="compiling", method={"engines": 3})
    task.baseline.runtime = "compiling"
    if itself:
        task.baseline.build_id = task.candidate.build_id
    (folder / "task.pb").write_bytes(task.SerializeToString())


def test_a_build_alone_is_its_first_engine_and_says_what_making_it_took(tmp_path: Path) -> None:
    lay_out(tmp_path)
    result = solo_here(tmp_path)
    assert (result.solo.engine, Compiling.made) == (1, [(b"candidate", 0)])
    assert result.solo.engine_ns > 0 and list(result.notes) == ["its engines are slower by turns"]


@pytest.mark.parametrize("engine", [0, 2])
def test_a_pair_times_the_engines_it_is_told_to(tmp_path: Path, engine: int) -> None:
    lay_out(tmp_path)
    run = measurement_pb2.PairRun()
    trial_here(tmp_path, run, "pair", 1, engine)
    assert (run.candidate_engine, run.baseline_engine) == (engine + 1, engine + 1)
    assert sorted(Compiling.made) == [(b"baseline", engine), (b"candidate", engine)]
    assert run.engines_ns > 0
    fastest = min(ns for block in run.blocks for ns in block.latency_ns)
    assert fastest >= STEP_S * 1e9 * (engine + 1)


def test_beside_itself_a_build_has_other_engines_on_either_side(tmp_path: Path) -> None:
    lay_out(tmp_path, b"baseline", itself=True)
    run = pair_here(tmp_path)
    assert (run.candidate_engine, run.baseline_engine) == (1, 4)


def test_a_runtime_that_makes_none_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiling, "compiles", False)
    lay_out(tmp_path)
    run = measurement_pb2.PairRun()
    trial_here(tmp_path, run, "pair", 0, 2)
    assert (run.candidate_engine, run.baseline_engine, run.engines_ns) == (0, 0, 0)
    assert {attempt for _, attempt in Compiling.made} == {0}
    assert (solo_here(tmp_path).solo.engine, several_engines([run, run])) == (0, False)


@given(st.integers(0, 5), st.integers(0, 1000), st.integers(0, 1000), st.integers(2, 16))
def test_each_engine_is_timed_in_both_orders_and_as_often_as_any_other(
    engines: int, first: int, limit: int, processes: int
) -> None:
    turns = EnginesInTurn(measurement_pb2.Method(engines=engines, engines_limit_ns=limit), first)
    told = [turns.of(number) for number in range(processes // 2 * 2)]
    count = max(engines, 1) if first * (max(engines, 1) - 1) <= limit else 1
    assert set(told) == set(range(min(count, processes // 2)))
    by_order = [told[::2], told[1::2]]
    assert by_order[0] == by_order[1]
    often = [told.count(engine) for engine in set(told)]
    assert max(often) - min(often) <= 2
