"""How often a ratio's 95 % interval holds the truth where sampling stops as soon as it is narrow: `python -m benchmarks.stopping`.

Simulated processes, judged by the code that agents stop by and reports are made with. What real machines do otherwise than a
normal distribution says is not in it.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np

from benchmarks import harness
from fleetfit.core.statistics_latency import half_width, ratio_interval
from fleetfit.proto.methods import PAIR_PROCESSES_MORE, named_method

# Standard deviation between processes of the ratio of two builds, as a share of it; 2 % is a busy shared machine.
SPREADS: Final = (0.004, 0.006, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.03)
ORDER: Final = 0.005
# What a coverage of 95 % may lose to stopping.
_LEAST_COVERED: Final = 0.91


def stopping(quick: bool) -> harness.Outcome:
    """Simulate experiments with every spread."""
    method = named_method("standard")
    experiments = 200 if quick else 4_000
    figures: dict[str, Any] = {"experiments": experiments, "precision": method.precision, "spreads": {}}
    for spread in SPREADS:
        found = [
            _experiment(np.random.default_rng([number, round(spread * 1e6)]), spread, method.pair_processes, method)
            for number in range(experiments)
        ]
        covered, used, precise = (np.array(column, dtype=float) for column in zip(*found, strict=True))
        figures["spreads"][str(spread)] = {
            "covered": float(covered.mean()),
            "mean_processes": float(used.mean()),
            "as_narrow_as_asked": float(precise.mean()),
        }
        print(f"{spread}: {figures['spreads'][str(spread)]}", file=sys.stderr, flush=True)
    least = min(one["covered"] for one in figures["spreads"].values())
    claim = (
        f"Where sampling stops as soon as a 95 % interval is within {100 * method.precision:g} %, it holds the true ratio in at "
        f"least {100 * _LEAST_COVERED:g} % of experiments, whatever the spread between processes"
    )
    return claim, figures, least >= _LEAST_COVERED


def _experiment(chance: np.random.Generator, spread: float, fewest: int, method: Any) -> tuple[bool, int, bool]:
    """Whether the interval holds the truth, how many processes it took, and whether it is as narrow as asked."""
    logs = chance.normal(0, spread, method.most_pair_processes)
    first = [at % 2 == 0 for at in range(len(logs))]
    # Whoever is loaded first is a little faster, always the same way.
    logs = logs + np.where(first, ORDER, -ORDER)
    pairs = [([np.array([1.0])], [np.array([np.exp(log)])]) for log in logs]
    count = fewest
    while True:
        found = ratio_interval(pairs[:count], first[:count])
        precise = half_width(found) <= method.precision
        if precise or count + PAIR_PROCESSES_MORE > method.most_pair_processes:
            return found.low <= 1 <= found.high, count, precise
        count += PAIR_PROCESSES_MORE


if __name__ == "__main__":
    sys.exit(harness.run("stopping", stopping))
