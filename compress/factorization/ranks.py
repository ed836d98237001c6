"""Which ranks: layer by layer, or for a budget of the whole model."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Options:
    """Ways to split one layer, one in each row: what they cost, and what share of the outputs' variance they keep."""

    way: NDArray[np.int64]
    """Shape (count,): which split."""
    ranks: NDArray[np.int64]
    """Shape (count, 2): its ranks; the second is 0 where there is only one."""
    macs: NDArray[np.float64]
    """Shape (count,): multiply-accumulates for one sample."""
    parameters: NDArray[np.float64]
    """Shape (count,)."""
    kept: NDArray[np.float64]
    """Shape (count,), 0 to 1."""

    @classmethod
    def of(
        cls,
        ranks: NDArray[np.int64],
        macs: NDArray[np.floating[Any]],
        parameters: NDArray[np.int64],
        kept: NDArray[np.float64],
    ) -> Options:
        """The options of one split."""
        pairs = np.zeros((len(ranks), 2), np.int64)
        pairs[:, : ranks.shape[1]] = ranks
        return cls(np.zeros(len(ranks), np.int64), pairs, macs.astype(float), parameters.astype(float), kept)

    @classmethod
    def joined(cls, parts: Sequence[Options]) -> Options:
        """The options of several splits of one layer."""
        return cls(
            np.concatenate([np.full(len(part.macs), at) for at, part in enumerate(parts)]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate([part.macs for part in parts]),
            np.concatenate([part.parameters for part in parts]),
            np.concatenate([part.kept for part in parts]),
        )

    def at(self, row: int) -> Choice:
        """One row."""
        ranks = tuple(int(rank) for rank in self.ranks[row] if rank)
        return Choice(int(self.way[row]), ranks, self.macs[row], self.parameters[row], float(self.kept[row]))

    def saving(self, macs: float, parameters: float) -> NDArray[np.float64]:
        """The share that each option saves of a layer with these costs: of MACs or of parameters, the smaller of both."""
        return np.minimum(1 - self.macs / macs, 1 - self.parameters / parameters)

    def rows(self, mask: NDArray[np.bool_]) -> Options:
        """Those rows only."""
        return Options(self.way[mask], self.ranks[mask], self.macs[mask], self.parameters[mask], self.kept[mask])


class Choice(NamedTuple):
    """One option."""

    way: int
    ranks: tuple[int, ...]
    macs: float
    parameters: float
    kept: float


def cheapest(options: Options, good: NDArray[np.bool_], worth: NDArray[np.bool_]) -> Choice:
    """The good option with the fewest MACs, among those worth it if there are any; of equals, the one that keeps most."""
    among = good & worth
    rows = np.flatnonzero(among if among.any() else good)
    return options.at(int(rows[np.lexsort((-options.kept[rows], options.parameters[rows], options.macs[rows]))[0]]))


class OutOfReach(Exception):
    """The budget is larger than what can go; `most` can."""

    def __init__(self, most: float) -> None:
        super().__init__(most)
        self.most = most


def allot(options: Mapping[str, Options], whole: Mapping[str, float], cost: str, remove: float) -> dict[str, Choice]:
    """For a budget over all layers, the options whose shares of variance lost add up to least; layers left out stay whole.

    Each layer's curve of loss over cost is replaced by its lower convex hull; then the steps along the hulls are taken in the
    order of loss per cost saved until enough is gone, which is the Lagrangian solution at the multiplier of the last step (Shoham
    and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988). The last layer then gets the best option,
    on its hull or not, that just suffices.

    Args:
        options: For each layer, all options that may be taken.
        whole: For each layer, its cost as it is.
        cost: `macs` or `parameters`.
        remove: How much of the cost is to go, summed over the layers.

    Raises:
        OutOfReach: So much cannot go.
    """
    hulls = {name: _hull(getattr(own, cost), 1 - own.kept, whole[name]) for name, own in options.items()}
    steps: list[tuple[float, str, int]] = []
    for name, hull in hulls.items():
        if len(hull) > 1:
            heapq.heappush(steps, (_slope(hull[0], hull[1]), name, 1))
    reached = dict.fromkeys(hulls, 0)
    gone = 0.0
    last = None
    while gone < remove and steps:
        _, name, at = heapq.heappop(steps)
        hull = hulls[name]
        gone += hull[at - 1].cost - hull[at].cost
        reached[name], last = at, name
        if at + 1 < len(hull):
            heapq.heappush(steps, (_slope(hull[at], hull[at + 1]), name, at + 1))
    if gone < remove:
        raise OutOfReach(gone)
    chosen = {name: options[name].at(hulls[name][at].row) for name, at in reached.items() if at}
    if last is not None:
        may_cost = hulls[last][reached[last]].cost + gone - remove
        if may_cost >= whole[last]:
            del chosen[last]
        else:
            own = options[last]
            rows = np.flatnonzero(getattr(own, cost) <= may_cost)
            chosen[last] = own.at(int(rows[np.lexsort((getattr(own, cost)[rows], -own.kept[rows]))[0]]))
    return chosen


class _Corner(NamedTuple):
    cost: float
    loss: float
    row: int


def _slope(one: _Corner, other: _Corner) -> float:
    return (other.loss - one.loss) / (one.cost - other.cost)


def _hull(costs: NDArray[np.float64], losses: NDArray[np.float64], whole: float) -> list[_Corner]:
    """The corners of the lower convex hull of loss over cost, from the whole layer to the cheapest option."""
    corners = [_Corner(whole, 0.0, -1)]
    order = np.lexsort((losses, -costs))
    # From the dearest on, only what loses less than everything that costs no more: seen from the cheap end, a falling staircase.
    least = np.minimum.accumulate(losses[order][::-1])[::-1]
    before = np.append(least[1:], np.inf)
    for row in order[losses[order] < before]:
        corner = _Corner(float(costs[row]), float(losses[row]), int(row))
        if corner.cost >= corners[-1].cost:
            continue
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], corner):
            corners.pop()
        corners.append(corner)
    return corners
