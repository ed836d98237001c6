"""Lengths of time, read and written."""

from __future__ import annotations

import pytest

from fleetfit.core.durations import duration, milliseconds
from fleetfit.core.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90_000), ("90s", 90_000), (" 30 M ", 1_800_000), ("1.5h", 5_400_000), ("2d", 172_800_000), ("0.001", 1)],
)
def test_what_people_write(text: str, expected: int) -> None:
    assert milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1s", "0", "0.0001s", "1w", "1h30m", "9" * 30, "1e3"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a length of time; write for example 90s, 30m or 2h") as caught:
        milliseconds(text, field="wait")
    assert caught.value.field == "wait"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (-3, "0 s"),
        (8.4, "8 s"),
        (99.6, "2 min"),
        (3600, "60 min"),
        (7200, "2 h 0 min"),
        (3 * 86400, "3 d"),
    ],
)
def test_what_people_read(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected
