"""The figures of a choice in plain words."""

from __future__ import annotations

import math
from typing import Final

from fleetfit.core.figures import number, size
from fleetfit.core.metrics import known_metric
from fleetfit.core.ties import EQUIVALENCE_MARGIN, is_equivalent
from fleetfit.server.report.summary import Figure

# Said of a network that came back from its user's own training.
TRAINED_ELSEWHERE: Final = (
    "it was trained by its user, outside fleetfit, and whether the original would gain as much from that training is not "
    "known"
)
USERS_ORIGINAL: Final = "the original that its user trained"

_PROPER: Final = {"mean_absolute_error": "mean absolute error", "mean_squared_error": "mean squared error"}


def interval(figure: Figure) -> str:
    """The bounds as ` (2.24 to 2.39)`, empty where they are not known."""
    if figure.low is None or figure.high is None:
        return ""
    return f" ({number(figure.low)} to {number(figure.high)})"


def times(ratio: Figure) -> str:
    """`2.31 times as fast` with its interval left to the caller: the object comes between."""
    return f"{number(ratio.value)} times as fast"


def tie(ratio: Figure) -> str:
    """Why a ratio is a tie: `a tie: its interval holds 1`."""
    if ratio.low is None or ratio.high is None:
        return "a tie as far as is known: its interval is unknown"
    if is_equivalent(ratio.low, ratio.high):
        return f"a tie: they differ by less than {100 * EQUIVALENCE_MARGIN:g} %"
    return "a tie: its interval holds 1"


def loss(metric: str, drop: Figure) -> str:
    """`loses 0.31 points of accuracy (-0.10 to 0.72)`, or gains; for errors `raises the mean absolute error by ...`."""
    info = known_metric(metric)
    if info is not None and info.is_user:
        name = info.name
    else:
        base, _, output = metric.partition(":")
        name = _PROPER.get(base, base.replace("_", " ")) + (f" of {output}" if output else "")
    higher_is_better = info is None or info.higher_is_better
    if not higher_is_better:
        verb, sign = ("raises", 1) if drop.value >= 0 else ("lowers", -1)
        return f"{verb} the {name} by {_spread(drop, sign)}"
    unit = f" {info.unit} of" if info is not None and info.unit else ""
    verb, sign = ("loses", 1) if drop.value >= 0 else ("gains", -1)
    return f"{verb} {_spread(drop, sign, f'{unit} {name}')}"


def _spread(drop: Figure, sign: int, unit: str = "") -> str:
    value, low, high = losses(sign * drop.value, *(None if b is None else sign * b for b in (drop.low, drop.high)))
    low, high = (low, high) if sign > 0 else (high, low)
    return f"{value}{unit} ({low} to {high})" if low and high else f"{value}{unit}"


def losses(value: float, low: float | None, high: float | None) -> tuple[str, str, str]:
    """A loss and its bounds as text, to the same place; bounds that are not known, or all one, are empty.

    A loss reads best with two decimals; where those would be zeros, two significant digits of the largest count.
    """
    bounds = [] if low is None or high is None or low == high else [low, high]
    largest = max(abs(one) for one in [value, *bounds])
    places = 2 if largest >= 0.05 or largest == 0 else 1 - math.floor(math.log10(largest))
    texts = [f"{round(one, places) + 0.0:.{min(places, 12)}f}" for one in [value, *bounds]]
    return (texts[0], texts[1], texts[2]) if bounds else (texts[0], "", "")


def smaller(ours: int, theirs: int) -> str:
    """`87 % smaller (148 kB instead of 1.14 MB)`, or larger."""
    share = 100 * (1 - ours / theirs) if theirs else 0.0
    pair = f"({size(ours)} instead of {size(theirs)})"
    if round(abs(share)) < 1:
        return f"as large {pair}"
    # 99.6 % must not read as everything.
    text = f"{abs(share):.0f}" if not 99.5 <= share < 100 else f"{share:.1f}"
    return f"{text} % {'smaller' if share > 0 else 'larger'} {pair}"


def enumerate_names(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def condition(threads: int, batch: int) -> str:
    """`2 threads and batches of 8`."""
    return f"{threads} thread{'' if threads == 1 else 's'} and batch{f'es of {batch}' if batch > 1 else ' 1'}"
