"""Figures of profiles, those that a device should never send among them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.proto.profile import profile_figures
from fleetfit.proto.v1 import measurement_pb2

Run = measurement_pb2.ProfileRun


def test_times_are_of_a_call_and_shares_of_all_operators() -> None:
    run = Run(calls=10, elapsed_ns=90_000_000)
    run.operators.add(name="b", operator="Relu", runs=20, total_ns=10_000_000)
    run.operators.add(name="a", operator="Conv", placed="CPU", number_format="float32", runs=10, total_ns=30_000_000)
    found = profile_figures(run)
    assert found is not None
    assert [one.name for one in found.operators] == ["a", "b"]
    assert [one.share for one in found.operators] == [0.75, 0.25]
    assert [one.runs for one in found.operators] == [1, 2]
    assert [one.ms for one in found.operators] == pytest.approx([3, 1])
    assert (found.operators_ms, found.call_ms, found.calls) == (pytest.approx(4), pytest.approx(9), 10)
    assert (found.operators[0].placed, found.operators[0].number_format) == ("CPU", "float32")


def test_names_are_cut_and_hold_nothing_that_moves_a_terminal() -> None:
    run = Run(calls=1, elapsed_ns=2)
    run.operators.add(name="\x1b[31m" + "a" * 1000, runs=1, total_ns=1)
    found = profile_figures(run)
    assert found is not None
    assert len(found.operators[0].name) == 300 and "\x1b" not in found.operators[0].name


WHOLE = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(WHOLE, WHOLE), max_size=5), WHOLE, WHOLE)
def test_whatever_a_device_sends_gives_figures_or_none(
    operators: list[tuple[int, int]], calls: int, elapsed: int
) -> None:
    run = Run(calls=calls, elapsed_ns=elapsed)
    for runs, total_ns in operators:
        run.operators.add(name="x", runs=runs, total_ns=total_ns)
    found = profile_figures(run)
    if found is not None:
        assert found.operators and math.isclose(sum(one.share for one in found.operators), 1)
        assert math.isclose(sum(one.ms for one in found.operators), found.operators_ms)
        assert all(0 < one.share <= 1 and one.runs > 0 for one in found.operators)


def test_where_there_is_no_profile_there_are_no_figures() -> None:
    assert profile_figures(Run(not_offered_because="it has none")) is None
    assert profile_figures(Run(calls=1, elapsed_ns=1)) is None
