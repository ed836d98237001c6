"""Profiles of operators: what is made of a runtime's own events, and what runtimes that are here say of a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes import operators
from fleetfit.runtimes.base import Availability, LoadedModel, Runtime
from fleetfit.runtimes.contract import is_one_sentence
from fleetfit.runtimes.ncnn import Ncnn
from fleetfit.runtimes.onnxruntime import OnnxRuntime
from fleetfit.runtimes.onnxruntime_gpu import OnnxRuntimeCuda, OnnxRuntimeTensorRt
from fleetfit.runtimes.onnxruntime_profile import calls_in
from fleetfit.runtimes.openvino import OpenVino
from fleetfit.runtimes.operators import (
    NoProfile,
    OperatorRun,
    Profile,
    ProfiledCall,
    call_repeatedly,
    calls_of,
    profile_of,
    quicker_half,
)
from fleetfit.runtimes.samples import SAMPLES, network_inputs

RUNS = st.lists(
    st.builds(
        OperatorRun,
        name=st.sampled_from(["a", "b", "c"]),
        operator=st.sampled_from(["Conv", "Relu"]),
        placed=st.just("CPU"),
        number_format=st.sampled_from(["float32", ""]),
        ns=st.integers(0, 10**9),
        runs=st.integers(1, 3),
    ),
    max_size=8,
)
CALLS = st.lists(st.builds(ProfiledCall, runs=RUNS, elapsed_ns=st.integers(0, 10**10)), max_size=6)


@given(CALLS)
def test_no_time_is_lost_or_made_up(calls: list[ProfiledCall]) -> None:
    found = profile_of(calls, "a note")
    runs = [run for call in calls for run in call.runs]
    if isinstance(found, NoProfile):
        assert not any(run.ns for run in runs) and "microseconds" in found.reason
        return
    assert sum(one.ns for one in found.operators) == sum(run.ns for run in runs)
    assert sum(one.runs for one in found.operators) == sum(run.runs for run in runs)
    assert (found.calls, found.elapsed_ns) == (len(calls), sum(call.elapsed_ns for call in calls))
    keys = [(one.name, one.operator, one.placed, one.number_format) for one in found.operators]
    assert len(set(keys)) == len(keys), "each operator stands there once"
    times = [one.ns for one in found.operators]
    assert times == sorted(times, reverse=True) and found.notes == ("a note",)


@given(CALLS)
def test_what_is_left_out_is_slower_than_what_is_kept(calls: list[ProfiledCall]) -> None:
    def spent(call: ProfiledCall) -> int:
        return sum(run.ns for run in call.runs)

    kept = quicker_half(calls)
    assert len(kept) == (len(calls) + 1) // 2
    left = sorted(map(spent, calls))[len(kept) :]
    assert not left or max(map(spent, kept), default=0) <= min(left)


def test_a_profiler_that_heard_too_little_is_refused() -> None:
    run = OperatorRun("a", "Conv", "CPU", "", 1)
    assert calls_of([[], [run], [run]], [5, 6]) == [ProfiledCall([run], 5), ProfiledCall([run], 6)]
    with pytest.raises(InvalidModel, match="tells of 1 calls where 2 were made") as refused:
        calls_of([[run]], [5, 6])
    assert is_one_sentence(refused.value)


def test_a_slow_build_is_called_three_times_and_a_quick_one_no_more_than_thirty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []
    assert len(call_repeatedly(lambda: None, told.append)) == 30
    assert told[-1] == 1 and told == sorted(told)
    monkeypatch.setattr(operators, "LIMIT_S", 0.0)
    assert len(call_repeatedly(lambda: None, told.append)) == 3


def event(name: str, operator: str, us: int, *, kind: str = "float", provider: str = "CPUExecutionProvider") -> Any:
    about = {"op_name": operator, "provider": provider, "input_type_shape": [{kind: [1, 4]}, {"int64": [1]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "ts": 0, "args": about}


CALL_ENDS = {"cat": "Session", "name": "model_run", "dur": 9, "ts": 0, "args": {}}


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**6)), max_size=4), max_size=5), st.booleans()
)
def test_events_belong_to_the_call_that_ends_behind_them(calls: list[list[tuple[str, int]]], by_line: bool) -> None:
    events: list[Any] = [{"cat": "Session", "name": "model_loading_from_saved", "dur": 1, "args": {}}]
    for call in calls:
        events += [event(name, "Conv", us) for name, us in call] + [CALL_ENDS]
    # What was never ended is no call.
    events.append(event("late", "Relu", 5))
    lines = ["[\n", *(json.dumps(one) + ",\n" for one in events[:-1]), json.dumps(events[-1]) + "\n", "]\n"]
    found = calls_in(lines if by_line else [json.dumps(events)])
    assert [[(run.name, run.ns) for run in call] for call in found] == [[(n, us * 1000) for n, us in c] for c in calls]


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"input_type_shape": [{"float": [1]}, {"int64": [1]}]}, "float32"),
        ({"input_type_shape": [{"uint8": [1]}], "output_type_shape": [{"float": [1]}]}, "uint8"),
        ({"input_type_shape": [], "output_type_shape": [{"double": [1]}]}, "float64"),
        ({}, ""),
    ],
)
def test_the_number_format_is_that_of_the_first_input(about: Mapping[str, Any], expected: str) -> None:
    one = {"cat": "Node", "name": "x_kernel_time", "dur": 1, "args": {"op_name": "X", **about}}
    (((run),),) = calls_in([json.dumps([one, CALL_ENDS])])
    assert (run.number_format, run.placed) == (expected, "")


@pytest.mark.parametrize(
    ("adapter", "build", "kind"),
    [(OnnxRuntime(), SAMPLES["onnx"], "Conv"), (OpenVino(), SAMPLES["openvino"], "Convolution")],
)
def test_the_network_spends_its_time_in_convolutions(adapter: Runtime, build: Any, kind: str) -> None:
    found = adapter.profile(build.network(), {"x": network_inputs(64)}, threads=1)
    assert isinstance(found, Profile)
    convolutions = [one for one in found.operators if kind in one.operator]
    assert len(convolutions) == 3
    assert sum(one.ns for one in convolutions) > 0.5 * sum(one.ns for one in found.operators)
    for one in convolutions:
        assert (one.placed, one.number_format, one.runs) == ("CPU", "float32", found.calls)


@pytest.mark.parametrize(("adapter", "build"), [(OnnxRuntime(), SAMPLES["onnx"]), (OpenVino(), SAMPLES["openvino"])])
def test_operators_take_most_of_the_calls_that_they_are_part_of(adapter: Runtime, build: Any) -> None:
    """So what is added up is of as many calls as it says: OpenVINO tells means, from which cold calls are taken away."""
    found = adapter.profile(build.network(), {"x": network_inputs(64)}, threads=1)
    assert isinstance(found, Profile)
    assert 0.2 < sum(one.ns for one in found.operators) / found.elapsed_ns <= 1


class _Plain(Runtime):
    name, formats = "plain", ("onnx",)

    def availability(self) -> Availability:
        return Availability(True, "", "1.0", ("CPU",))

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (_Plain(), "fleetfit knows no profiler of plain"),
        (Ncnn(), "ncnn's package times no layers: it is built without NCNN_BENCHMARK"),
        (OnnxRuntimeCuda(), "--enable_cuda_profiling"),
        (OnnxRuntimeTensorRt(), "--enable_cuda_profiling"),
    ],
)
def test_a_runtime_that_offers_none_says_why(adapter: Runtime, reason: str) -> None:
    found = adapter.profile(b"", {}, threads=1)
    assert isinstance(found, NoProfile) and reason in found.reason
