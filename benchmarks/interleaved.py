"""Builds timed in turn in one process: what slows a machine down for a while then slows all of them, and ratios hold."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.agent.measuring.timing import block_size, take_samples, warm_up
from fleetfit.runtimes.base import Arrays
from fleetfit.runtimes.registry import runtime

_BLOCK_NS: Final = 15_000_000
_WARM_UP_NS: Final = 200_000_000


def blocks_in_turn(
    builds: Sequence[tuple[str, bytes]], feeds: Arrays, rounds: int, told: Callable[[str], None]
) -> list[list[float]]:
    """The median latency of every build in every round, in nanoseconds: one list for each build.

    Builds are (runtime, content), run with one thread and the same inputs. A round gives each a block of at least 15 ms, in
    an order drawn anew.
    """
    models = [runtime(name).load(content, threads=1) for name, content in builds]
    calls = [model.bind(feeds) for model in models]
    for call in calls:
        warm_up(call, _WARM_UP_NS)
    sizes = [block_size(call, _BLOCK_NS) for call in calls]
    order = random.Random(0)  # noqa: S311 - an order, not a secret
    blocks: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        for at in order.sample(range(len(calls)), len(calls)):
            # The first after another's turn meets cold caches; it is not what a deployment sees.
            calls[at]()
            blocks[at].append(statistics.median(take_samples(calls[at], sizes[at], 10 * _BLOCK_NS)))
        if number % 10 == 9:
            told(f"round {number + 1} of {rounds}")
    for model in models:
        model.close()
    return blocks


def times_as_fast(baseline: Sequence[float], found: Sequence[float]) -> Mapping[str, float]:
    """The median over rounds of the ratio of two builds' blocks, with its 95 % interval."""
    return median_interval(np.array(baseline) / np.array(found))


def median_interval(ratios: NDArray[np.float64]) -> Mapping[str, float]:
    """The median of independent ratios, with its 95 % interval by bootstrap."""
    numbers = np.random.default_rng(0)
    drawn = np.median(numbers.choice(ratios, (2_000, len(ratios))), axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"value": float(np.median(ratios)), "low": float(low), "high": float(high)}
