"""The clock work: warm-up, samples, and how many of them make a block."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from fleetfit.core.statistics_latency import median_spread, steady

Call = Callable[[], None]

_CHUNK_NS: Final = 100_000_000
_ENDLESS: Final = 1 << 40
_MOST_KEPT: Final = 50_000

FOR_P95: Final = 130
"""So many samples of all processes carry a p95 (`percentile_supported`): without one a limit on it could not be checked."""

_clock = time.perf_counter_ns
# Two stretches are compared for drift. They last long enough for a processor to raise its clock (tens of milliseconds) and
# have enough samples for a median.
_STRETCH_NS: Final = 30_000_000
_STRETCH_SAMPLES: Final = 6
# For a build so slow that two stretches would take longer than this many limits, fewer samples must do.
_PATIENCE: Final = 4
_FEWEST: Final = 3


def time_once(call: Call) -> int:
    """How long one call takes, in nanoseconds."""
    before = _clock()
    call()
    return _clock() - before


def take_samples(call: Call, count: int, limit_ns: int, *, least: int = 1) -> list[int]:
    """`count` samples, or as many as fit into the limit, but at least `least`. In nanoseconds."""
    samples: list[int] = []
    append = samples.append
    end = _clock() + limit_ns
    for _ in range(max(count, least)):
        before = _clock()
        call()
        after = _clock()
        append(after - before)
        if after > end and len(samples) >= least:
            break
    return samples


def take_until(call: Call, count: int, limit_ns: int, precision: float, *, least: int = 1) -> list[int]:
    """Samples, `count` at a time, until their median is known to `precision` (a share of it; 0: at once) or the limit passes."""
    began = _clock()
    samples = take_samples(call, count, limit_ns, least=least)
    while precision > 0 and (left := limit_ns - (_clock() - began)) > 0 and median_spread(samples) > precision:
        samples += take_samples(call, count, left)
    return samples


def call_without_pause(
    call: Call, duration_ns: int, told: Callable[[float], None], *, most: int = _MOST_KEPT
) -> tuple[list[int], int, int]:
    """Call for so long: the times of one of `every` calls in order, in nanoseconds, then `every`, then how many calls.

    So many are kept that a change over the whole time shows, and at most `most`. `told` hears what share of it is over.
    """
    began = _clock()
    kept: list[int] = []
    every, calls = 1, 0
    while (left := duration_ns - (_clock() - began)) > 0:
        told(1 - left / duration_ns)
        samples = take_samples(call, _ENDLESS, min(_CHUNK_NS, left))
        kept += samples[-calls % every :: every]
        calls += len(samples)
        while len(kept) > most:
            kept, every = kept[::2], 2 * every
    return kept, every, calls


def warm_up(call: Call, limit_ns: int) -> tuple[int, bool]:
    """Call until the last two stretches show no drift, or the limit passes: how many calls, and whether they are steady."""
    began = _clock()
    samples: list[int] = []
    starts = [0]
    while True:
        stretch = _clock()
        while len(samples) - starts[-1] < _STRETCH_SAMPLES or _clock() - stretch < _STRETCH_NS:
            samples.append(time_once(call))
            if _clock() - began > _PATIENCE * limit_ns and len(samples) >= _FEWEST:
                # Seconds per call: a tenth between the last two is all that can be said.
                return len(samples), abs(samples[-1] - samples[-2]) <= 0.1 * samples[-1]
        starts.append(len(samples))
        if len(starts) > 2:
            if steady(samples[starts[-3] :]):
                return len(samples), True
            if _clock() - began > limit_ns:
                return len(samples), False


def block_size(call: Call, block_ns: int) -> int:
    """How many samples make a block of at least `block_ns`."""
    samples = sorted(take_samples(call, 5, block_ns))
    return max(1, -(-block_ns // max(samples[len(samples) // 2], 1)))
