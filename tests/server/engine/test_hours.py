from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.core.errors import InvalidInput
from fleetfit.server.engine.hours import parse_window, within_hours

UTC = timezone.utc
# A Monday.
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("08:00-18:00", [at(0, 8), at(6, 17, 59)], [at(0, 7, 59), at(0, 18)]),
        ("22:00-06:00", [at(0, 22), at(1, 5, 59), at(0, 0)], [at(0, 6), at(0, 21, 59)]),
        ("mon-fri 08:00-18:00", [at(4, 12)], [at(5, 12), at(6, 12)]),
        # Friday's night ends on Saturday, and Sunday's is nobody's.
        ("mon-fri 22:00-06:00", [at(4, 23), at(5, 5)], [at(5, 23), at(0, 5)]),
        ("sat,sun 00:00-24:00", [at(5, 0), at(6, 23, 59)], [at(4, 23, 59), at(7, 0)]),
        ("fri-mon 10:00-11:00", [at(0, 10), at(4, 10), at(6, 10)], [at(1, 10), at(3, 10)]),
        # 08:00 in Tokyo is 23:00 of the day before.
        ("mon 08:00-09:00 Asia/Tokyo", [at(-1, 23)], [at(0, 8), at(0, 23)]),
        # Berlin is an hour ahead in winter, two in summer.
        ("12:00-13:00 Europe/Berlin", [at(0, 11), datetime(2026, 7, 1, 10, tzinfo=UTC)], [at(0, 12), at(0, 10)]),
    ],
)
def test_windows(window: str, inside: list[datetime], outside: list[datetime]) -> None:
    parsed = parse_window(window)
    assert [parsed.holds(moment) for moment in inside] == [True] * len(inside)
    assert [parsed.holds(moment) for moment in outside] == [False] * len(outside)


times = st.integers(0, 24 * 60 - 1)


def written(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


@settings(deadline=None)
@given(times, times, st.integers(0, 14 * 24 * 60))
def test_a_window_and_the_one_turned_round_share_the_day(begin: int, end: int, minutes: int) -> None:
    if begin == end:
        return
    moment = MONDAY + timedelta(minutes=minutes)
    one, other = (parse_window(f"{written(a)}-{written(b)}") for a, b in ((begin, end), (end, begin)))
    assert one.holds(moment) != other.holds(moment)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_whatever_is_written_is_understood_or_refused(text: str) -> None:
    try:
        parse_window(text).holds(MONDAY)
    except InvalidInput as error:
        assert error.field == "hours"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "are no hours"),
        ("22-6", "are no hours"),
        ("22:00-22:00", "has no length"),
        ("24:00-06:00", "no time of day"),
        ("10:61-11:00", "no time of day"),
        ("moo 10:00-11:00", "'moo' is no day"),
        ("10:00-11:00 Mars/Olympus", "no time zone"),
        ("10:00-11:00 ../../etc/passwd", "are no hours"),
        ("10:00-11:00 /etc/passwd", "no time zone"),
        ("10:00-11:00 Europe", "no time zone"),
    ],
)
def test_what_are_no_hours_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_window(text)


def test_without_windows_it_is_always_and_with_several_any_counts() -> None:
    assert within_hours([], MONDAY)
    assert within_hours(["10:00-11:00", "00:00-01:00"], MONDAY)
    assert not within_hours(["10:00-11:00"], MONDAY)
