"""Which engines of two builds are timed, of those that a runtime builds on the device."""

from __future__ import annotations

from collections.abc import Iterable

from fleetfit.proto.v1 import measurement_pb2


class EnginesInTurn:
    """Pairs of processes take turns between engines, so that each is timed in both orders of loading.

    `first_ns` is what making the first took: making one takes minutes, and where the others of the candidate would take longer
    than the method allows there is only that one. The baseline's serve all candidates.
    """

    def __init__(self, method: measurement_pb2.Method, first_ns: int) -> None:
        wanted = max(method.engines, 1)
        self._count = wanted if first_ns * (wanted - 1) <= method.engines_limit_ns else 1
        self.spent_s = 0.0
        """How long making them has taken beside pairs so far."""

    def of(self, number: int) -> int:
        """The engine, from 0, that process `number` times."""
        return number // 2 % self._count

    def heard(self, run: measurement_pb2.PairRun) -> None:
        """What a process said."""
        self.spent_s += run.engines_ns / 1e9


def several_engines(runs: Iterable[measurement_pb2.PairRun]) -> bool:
    """Whether more than one engine of either build was timed."""
    return len({(run.candidate_engine, run.baseline_engine) for run in runs}) > 1
