from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.figures import number, size
from fleetfit.server.report.summary import Figure
from fleetfit.server.selection.limits import rounded_up
from fleetfit.server.selection.words import condition, enumerate_names, loss, losses, smaller, tie


@given(st.floats(1e-6, 1e12))
def test_a_proposed_limit_allows_what_it_is_proposed_for(value: float) -> None:
    assert value <= float(rounded_up(value)) <= value * 1.02


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (Figure(value=0.31, low=-0.1, high=0.72), "loses 0.31 points of accuracy (-0.10 to 0.72)"),
        (Figure(value=-0.2, low=-0.5, high=0.1), "gains 0.20 points of accuracy (-0.10 to 0.50)"),
        (Figure(value=0.0, low=0.0, high=0.0), "loses 0.00 points of accuracy"),
        (Figure(value=1.5, low=None, high=None), "loses 1.50 points of accuracy"),
    ],
)
def test_losses_of_accuracy(drop: Figure, said: str) -> None:
    assert loss("accuracy", drop) == said


def test_losses_of_an_error() -> None:
    up = Figure(value=0.0012, low=0.0004, high=0.002)
    assert loss("mean_absolute_error", up) == "raises the mean absolute error by 0.0012 (0.0004 to 0.0020)"
    down = Figure(value=-12.0, low=-13.0, high=-11.0)
    assert loss("mean_squared_error", down) == "lowers the mean squared error by 12.00 (11.00 to 13.00)"


@given(st.floats(-100, 100), st.floats(0, 50))
def test_a_loss_and_its_bounds_are_to_the_same_place(value: float, half: float) -> None:
    texts = [text for text in losses(value, value - half, value + half) if text]
    assert len({len(text.partition(".")[2]) for text in texts}) == 1
    assert "-0.00" not in texts


def test_sizes_and_shares() -> None:
    assert [size(n) for n in (0, 999, 1000, 121_900, 1_724_000, 999_900)] == [
        "0 bytes", "999 bytes", "1.00 kB", "122 kB", "1.72 MB", "1.00 MB",
    ]  # fmt: skip
    assert smaller(121_900, 1_724_000) == "93 % smaller (122 kB instead of 1.72 MB)"
    assert smaller(2000, 1000) == "100 % larger (2.00 kB instead of 1.00 kB)"
    assert smaller(1001, 1000) == "as large (1.00 kB instead of 1.00 kB)"
    assert smaller(3, 1000) == "99.7 % smaller (3 bytes instead of 1.00 kB)"


def test_small_words() -> None:
    assert enumerate_names(["a"]) == "a" and enumerate_names(["a", "b", "c"]) == "a, b and c"
    assert condition(1, 1) == "1 thread and batch 1"
    assert condition(2, 8) == "2 threads and batches of 8"
    assert [number(x) for x in (0.0, 2.3456, 0.01234, 1240.4, -0.5)] == ["0", "2.35", "0.0123", "1240", "-0.500"]


def test_why_a_ratio_is_a_tie() -> None:
    assert tie(Figure(value=1.01, low=0.97, high=1.05)) == "a tie: its interval holds 1"
    assert tie(Figure(value=1.001, low=0.998, high=1.004)) == "a tie: they differ by less than 1 %"
    assert tie(Figure(value=1.5, low=None, high=None)) == "a tie as far as is known: its interval is unknown"
