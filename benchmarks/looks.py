"""What looking at a device costs a measurement that runs meanwhile: `python -m benchmarks.looks`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.harness import Outcome, run
from benchmarks.interleaved import median_interval
from fleetfit.agent.measuring.timing import take_samples
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.readings import Readings
from fleetfit.core.children import held_bytes

# As the measuring process does each of them, per second.
_GLANCES, _GUARD_LOOKS = 1, 10
_MOST_SHARE: Final = 0.005
_WINDOW_NS: Final = 250_000_000
# Ten times as often as the agent looks, so that what one look does would show.
_LOOKER: Final = (
    "import sys, time; from fleetfit.agent.probe.files import Tree; from fleetfit.agent.probe.readings import Readings\n"
    "readings = Readings(Tree())\n"
    "for line in sys.stdin:\n"
    "    end = time.monotonic() + float(line)\n"
    "    while time.monotonic() < end: readings.glance(); time.sleep(0.1)\n"
    "    print('done', flush=True)\n"
)


def _processor_seconds(look: Callable[[], object], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        look()
    return (time.process_time() - began) / count


def _ratios(rounds: int) -> list[float]:
    """Median time of a call while somebody looks, over that while nobody does, in windows side by side."""
    a = np.random.default_rng(0).standard_normal((96, 96)).astype(np.float32)
    out = np.empty_like(a)

    def call() -> None:
        np.matmul(a, a, out=out)

    ratios = []
    with subprocess.Popen(
        [sys.executable, "-c", _LOOKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        for number in range(rounds):
            found = {}
            for looked_at in ((True, False), (False, True))[number % 2]:
                if looked_at:
                    child.stdin.write(f"{_WINDOW_NS / 1e9}\n")
                    child.stdin.flush()
                found[looked_at] = statistics.median(take_samples(call, 1 << 30, _WINDOW_NS))
                if looked_at:
                    child.stdout.readline()
            ratios.append(found[True] / found[False])
        child.stdin.close()
    return ratios


def looks(quick: bool) -> Outcome:
    """Cost of the looks at a device during a trial, in processor time and in what a call beside them takes."""
    readings = Readings(Tree())
    count = 300 if quick else 3000
    glance_s = _processor_seconds(readings.glance, count)
    guard_s = _processor_seconds(lambda: held_bytes(os.getpid()), count)
    share = _GLANCES * glance_s + _GUARD_LOOKS * guard_s
    ratios = np.array(_ratios(8 if quick else 60))
    compared = median_interval(ratios)
    figures: dict[str, Any] = {
        "glance_us": 1e6 * glance_s,
        "memory_guard_us": 1e6 * guard_s,
        "share_of_a_core": share,
        "call_looked_at_over_not": {**compared, "windows": len(ratios)},
        "load_1m": os.getloadavg()[0],
    }
    claim = "looking at the device takes less than 0.5 % of a core, and a call beside ten times as many looks no longer"
    return claim, figures, bool(share < _MOST_SHARE and compared["low"] <= 1)


if __name__ == "__main__":
    sys.exit(run("looks", looks))
