from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.client.tables.words import ago, condition, count, duration, shape, significant, size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1240, "1.24 kB"), (999_999, "1.00 MB"),
        (1_150_000, "1.15 MB"), (123_456_789, "123 MB"), (25_300_000_000, "25.3 GB"),
    ],
)  # fmt: skip
def test_size(number: int | None, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (-3, "0 s"), (99, "99 s"), (120, "2 min"), (6000, "1 h 40 min"), (260_000, "3 d")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.4123, "0.412"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (999.96, "1000"),
        (1234.5, "1234"),
        (-0.0512, "-0.0512"),
        (2e-6, "2.00e-06"),
        (0.9, "0.900"),
        (0.9999, "1.00"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_significant_keeps_three_digits(value: float) -> None:
    assert float(significant(value)) == pytest.approx(value, rel=0.006)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_size_is_short_and_close(number: int) -> None:
    text = size(number)
    assert len(text) <= 8
    value, unit = text.split()
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(value) * factor == pytest.approx(number, rel=0.006)


def test_small_words() -> None:
    assert count(1234567) == "1,234,567"
    assert count(None) == "-"
    assert shape([-1, 3, -1]) == "(N, 3, ?)"
    assert shape([-1]) == "(N,)"
    assert ago(0) == "never"
    assert ago(int(time.time() * 1000)) == "now"
    assert ago(int(time.time() * 1000) - 120_000) == "2 min ago"


@dataclass
class Measured:
    threads: int
    batch: int


def test_a_condition_is_named_only_where_it_differs() -> None:
    one, two = Measured(1, 1), Measured(2, 1)
    assert condition(one, [one]) == ""
    assert condition(two, [one, two]) == " 2 thr"
    assert condition(Measured(1, 8), [one, Measured(1, 8)]) == " batch 8"
