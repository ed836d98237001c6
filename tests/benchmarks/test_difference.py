"""How the runs of two occasions are judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks import difference
from fleetfit.core.statistics_latency import ratio_interval
from fleetfit.core.statistics_student import Interval


def run(kind: str, ratio: float, at: float, half: float = 0.01) -> dict[str, Any]:
    return {
        "kind": kind,
        "naive": False,
        "ratio": ratio,
        "ci95": [ratio / (1 + half), ratio * (1 + half)],
        "ci99": [ratio / (1 + 1.5 * half), ratio * (1 + 1.5 * half)],
        "processes": 8,
        "p50_ms": 0.2,
        "lasted_s": 9.0,
        "ended_unix": at,
    }


def naive(kind: str, ratio: float, p: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "naive": True,
        "ratio": ratio,
        "p": p,
        "ratio_of_medians": ratio,
        "lasted_s": 9.0,
        "ended_unix": 0.0,
    }


def runs(different: list[float], equal: list[float]) -> list[dict[str, Any]]:
    found = [run("different", ratio, 9.0 * at) for at, ratio in enumerate(different)]
    found += [run("equal", ratio, 7_200.0 + 9.0 * at) for at, ratio in enumerate(equal)]
    return [*found, naive("different", 0.9, 1e-9), naive("equal", 1.0, 0.5)]


def test_what_is_right_wrong_and_held_is_counted() -> None:
    _, figures, holds = difference._judged(runs([1.03] * 19 + [1.001], [1.0] * 19 + [1.05]))

    assert (figures["called_right"], figures["equal_called_different"]) == (19, 1)
    # The two that lie apart do not hold what all others have.
    assert (figures["held_pooled"], figures["intervals"]) == (38, 40)
    assert figures["naive"]["called_the_wrong_way"] == 1 and figures["naive"]["equal_called_different"] == 0
    assert figures["hours_between_begins"] == pytest.approx(2.0)
    assert holds


@pytest.mark.parametrize(
    ("different", "equal"),
    [([1.001] * 2 + [1.03] * 18, [1.0] * 20), ([1.03] * 20, [1.05] * 2 + [1.0] * 18), ([0.97] * 20, [1.0] * 20)],
    ids=["two misses", "two false alarms", "the wrong way"],
)
def test_more_errors_than_the_claim_allows(different: list[float], equal: list[float]) -> None:
    assert not difference._judged(runs(different, equal))[2]


def test_at_99_percent_an_interval_is_wider_by_students_factors() -> None:
    pairs = [([np.array([1.0])], [np.array([math.exp(log)])]) for log in (0.0, 0.01, 0.02, 0.03, 0.02, 0.01)]
    found = ratio_interval(pairs, [True, False] * 3)

    low, high = difference._at_99(found, len(pairs))

    # Student's t with 4 degrees of freedom: 4.604 at 99 %, 2.776 at 95 %.
    assert math.log(high / low) / math.log(found.high / found.low) == pytest.approx(4.604 / 2.776, rel=1e-3)
    assert math.sqrt(low * high) == pytest.approx(found.value)
    assert difference._at_99(Interval(1.0, 1.0, 1.0), 8) == (1.0, 1.0)


def test_the_chains_differ_by_operators_and_by_nothing_else() -> None:
    longer, shorter = (difference._chain(layers) for layers in (103, 100))
    assert longer.count(b"MatMul") * 100 == shorter.count(b"MatMul") * 103
    session = onnxruntime.InferenceSession(shorter, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((16, 64), 0.5, np.float32)})
    assert np.isfinite(found).all() and found.std() > 0
