"""Allotting ranks, against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.compress.factorization.ranks import Options, OutOfReach, allot, cheapest


def _options(costs: list[float], losses: list[float]) -> Options:
    ranks = np.arange(1, len(costs) + 1)[:, None]
    return Options.of(ranks, np.array(costs), np.array(costs, np.int64), 1 - np.array(losses))


curves = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.001, 1)), min_size=1, max_size=5), min_size=1, max_size=4
)


@given(curves=curves, share=st.floats(0.01, 1.0))
def test_enough_goes_and_no_more_is_lost_than_one_step_over_the_best(
    curves: list[list[tuple[int, float]]], share: float
) -> None:
    options = {str(at): _options([c for c, _ in curve], [loss for _, loss in curve]) for at, curve in enumerate(curves)}
    whole = dict.fromkeys(options, 10.0)
    most = sum(10 - min(cost for cost, _ in curve) for curve in curves)
    remove = share * most
    chosen = allot(options, whole, "macs", remove)
    assert sum(10 - choice.macs for choice in chosen.values()) >= remove - 1e-9
    lost = sum(1 - choice.kept for choice in chosen.values())
    best = min(
        sum(loss for _, loss in one)
        for one in itertools.product(*([(10, 0.0), *curve] for curve in curves))
        if sum(10 - cost for cost, _ in one) >= remove - 1e-9
    )
    assert lost <= best + max(loss for curve in curves for _, loss in curve) + 1e-9


@given(
    increments=st.lists(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), min_size=1, max_size=3), data=st.data()
)
def test_where_curves_are_convex_it_is_the_best_there_is(increments: list[list[float]], data: st.DataObject) -> None:
    losses = [list(np.cumsum(sorted(steps))) for steps in increments]
    options = {str(at): _options(list(range(9, 9 - len(own), -1)), own) for at, own in enumerate(losses)}
    remove = data.draw(st.integers(1, sum(map(len, losses))))
    chosen = allot(options, dict.fromkeys(options, 10.0), "parameters", remove)
    best = min(
        sum(([0.0, *own])[steps] for own, steps in zip(losses, taken, strict=True))
        for taken in itertools.product(*(range(len(own) + 1) for own in losses))
        if sum(taken) >= remove
    )
    assert sum(1 - choice.kept for choice in chosen.values()) == pytest.approx(best)


def test_the_last_layer_gets_what_just_suffices() -> None:
    """Its hull goes straight to the cheapest option; the one above it is on no hull, but enough."""
    options = {"a": _options([5, 1], [0.5, 0.6])}
    assert allot(options, {"a": 10.0}, "macs", 4)["a"].ranks == (1,)
    assert allot(options, {"a": 10.0}, "macs", 6)["a"].ranks == (2,)


def test_what_is_out_of_reach_is_said() -> None:
    with pytest.raises(OutOfReach) as caught:
        allot({"a": _options([3], [0.5]), "b": _options([], [])}, {"a": 10.0, "b": 5.0}, "macs", 8)
    assert caught.value.most == 7


def test_the_cheapest_is_chosen_among_what_is_worth_it_if_anything_is() -> None:
    options = _options([1, 2, 3], [0.3, 0.2, 0.1])
    good = np.array([False, True, True])
    assert cheapest(options, good, np.array([True, False, True])).ranks == (3,)
    assert cheapest(options, good, np.array([True, False, False])).ranks == (2,)
