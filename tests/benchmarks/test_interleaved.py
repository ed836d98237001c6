"""Timing in turn: every build in every round, and ratios of neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from benchmarks.interleaved import blocks_in_turn, times_as_fast

LATENCIES = st.lists(st.floats(1e3, 1e8), min_size=3, max_size=40)


def power(times: int) -> bytes:
    """`x` of (N, 64), `times` times multiplied with a matrix."""
    value = helper.make_tensor_value_info
    weights = np.eye(64, dtype=np.float32)
    nodes = [helper.make_node("MatMul", [f"v{at}" if at else "x", "w"], [f"v{at + 1}"]) for at in range(times)]
    graph = helper.make_graph(
        nodes,
        "power",
        [value("x", TensorProto.FLOAT, ["N", 64])],
        [value(f"v{times}", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def test_each_build_has_a_block_in_every_round() -> None:
    told: list[str] = []
    builds = [("onnxruntime", power(times)) for times in (1, 4, 16)]

    blocks = blocks_in_turn(builds, {"x": np.ones((1, 64), np.float32)}, 10, told.append)

    assert [len(found) for found in blocks] == [10, 10, 10]
    assert min(min(found) for found in blocks) > 0
    assert told == ["round 10 of 10"]


@given(LATENCIES, st.floats(0.1, 10))
def test_a_build_that_is_always_so_many_times_as_fast_is_called_that(baseline: list[float], times: float) -> None:
    found = times_as_fast(baseline, [nanoseconds / times for nanoseconds in baseline])

    assert found["value"] == pytest.approx(times)
    assert (found["low"], found["high"]) == pytest.approx((times, times))


@given(LATENCIES, st.integers(0, 2**31))
def test_what_slows_a_whole_round_changes_no_ratio(baseline: list[float], seed: int) -> None:
    numbers = np.random.default_rng(seed)
    other = np.array(baseline) * numbers.uniform(0.5, 2, len(baseline))
    slowed = numbers.uniform(1, 20, len(baseline))

    quiet = times_as_fast(baseline, list(other))
    loud = times_as_fast(list(np.array(baseline) * slowed), list(other * slowed))

    assert loud == pytest.approx(quiet)
    assert quiet["low"] <= quiet["value"] <= quiet["high"]
