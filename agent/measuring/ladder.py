"""Which points of scaling curves are tried: threads, batches and instances in doubling steps. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MOST_BATCH: Final = 256
# A step that gains less is taken for none; processes of one build differ by as much.
_GROWTH: Final = 1.05
# By chance one step may seem to gain nothing.
_FLAT_STEPS: Final = 2


def steps(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself; 1 for anything below."""
    found = [1]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found if found[-1] >= most else [*found, most]


def batch_steps(own: int, fixed: int | None) -> list[int]:
    """The batches to try, with the candidate's own among them; only the one that the build takes where that is `fixed`."""
    return [fixed] if fixed is not None else sorted({*steps(MOST_BATCH), own})


def instance_steps(cores: int) -> list[tuple[int, int]]:
    """How many processes, and how many threads for each so that together they have all cores but what cannot be shared out."""
    return [(instances, max(cores // instances, 1)) for instances in steps(cores)]


def grows_no_longer(throughputs: Sequence[float]) -> bool:
    """Whether the last two steps gained nothing worth the name over the best before them."""
    before, last = throughputs[:-_FLAT_STEPS], throughputs[-_FLAT_STEPS:]
    return bool(before) and max(last) < _GROWTH * max(before)
