"""A noisy neighbour: `python -m benchmarks.neighbour SEED` works and rests in turn, for times drawn by the seed, until killed.

Bursts alternate between arithmetic and copying of memory that fits into no cache: neighbours take processors, clocks and bandwidth.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Final

import numpy as np

from fleetfit.core.children import limit_self

MEAN_BURST_S: Final = 0.15
MEAN_REST_S: Final = 0.15
_BYTES: Final = 64 << 20


def main(seed: int) -> None:
    """Disturb for ever."""
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    here = np.zeros(_BYTES, np.uint8)
    there = np.empty_like(here)
    square = np.ones((192, 192), np.float32)
    while True:
        copies, until = chance.random() < 0.5, time.monotonic() + chance.expovariate(1 / MEAN_BURST_S)
        while time.monotonic() < until:
            if copies:
                np.copyto(there, here)
            else:
                square @ square
        time.sleep(chance.expovariate(1 / MEAN_REST_S))


if __name__ == "__main__":
    limit_self()  # it ends with whoever began it
    main(int(sys.argv[1]))
