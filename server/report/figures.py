"""Intervals as they are stored. Needs NumPy, so for children of the server only."""

from __future__ import annotations

from fleetfit.core.statistics_student import Interval
from fleetfit.proto.figures import bounds
from fleetfit.server.report.summary import Figure


def figure(interval: Interval) -> Figure:
    """An interval as it is stored: bounds that say nothing (infinite, or 0 of a ratio) are None."""
    low, high = bounds(interval)
    return Figure(value=interval.value, low=low, high=high)
