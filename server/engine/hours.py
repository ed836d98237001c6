"""The hours in which a device may be given work: `[DAYS] HH:MM-HH:MM [ZONE]`, as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from fleetfit.core.errors import InvalidInput

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:-[a-z]{3})?(?:,[a-z]{3}(?:-[a-z]{3})?)*) )?"
    r"(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)(?: (?P<zone>[A-Za-z0-9_+/-]{1,64}))?"
)
_MINUTES: Final = 24 * 60


@dataclass(frozen=True)
class Window:
    """From `begin` to `end`, in minutes of the zone's day; where it crosses midnight it belongs to the day it begins on."""

    days: frozenset[int]
    begin: int
    end: int
    zone: ZoneInfo

    def holds(self, moment: datetime) -> bool:
        """Whether an aware moment lies in it; its end does not."""
        local = moment.astimezone(self.zone)
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.begin < self.end:
            return today in self.days and self.begin <= minute < self.end
        return (today in self.days and minute >= self.begin) or ((today - 1) % 7 in self.days and minute < self.end)


def parse_window(text: str) -> Window:
    """A window as it is written; without a zone it is in UTC, without days on all. Raises InvalidInput."""
    found = _WINDOW.fullmatch(text.strip())
    if found is None:
        raise InvalidInput(
            f"'{text[:80]}' are no hours; write them as 22:00-06:00, or as 'sat,sun 08:00-20:00 Europe/Berlin'",
            field="hours",
        )
    begin, end = _minute(found["begin"], _MINUTES - 1), _minute(found["end"], _MINUTES)
    if begin == end:
        raise InvalidInput(f"'{text[:80]}' has no length; for the whole day write 00:00-24:00", field="hours")
    zone = found["zone"] or "UTC"
    try:
        known = ZoneInfo(zone)
    # An unknown key is a KeyError, a malformed one a ValueError, a folder of the database an OSError.
    except (KeyError, ValueError, OSError):
        raise InvalidInput(
            f"'{zone}' is no time zone that this server knows; write one as Europe/Berlin", field="hours"
        ) from None
    return Window(_days(found["days"]), begin, end, known)


def within_hours(windows: Sequence[str], moment: datetime) -> bool:
    """Whether work may be given at an aware moment; without windows always."""
    return not windows or any(parse_window(text).holds(moment) for text in windows)


def _minute(text: str, most: int) -> int:
    hour, minute = int(text[:2]), int(text[3:])
    if minute > 59 or hour * 60 + minute > most:
        raise InvalidInput(f"'{text}' is no time of day", field="hours")
    return hour * 60 + minute


def _days(text: str | None) -> frozenset[int]:
    days: set[int] = set()
    for part in (text or "mon-sun").split(","):
        first, _, last = part.partition("-")
        for name in (first, last or first):
            if name not in _DAYS:
                raise InvalidInput(f"'{name}' is no day; the days are {', '.join(_DAYS)}", field="hours")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        # fri-mon goes over the week's end.
        days.update(day % 7 for day in range(begin, end + 1 + (7 if end < begin else 0)))
    return frozenset(days)
