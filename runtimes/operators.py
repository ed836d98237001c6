"""What a runtime's own profiler says about the operators of a build, in one form for all runtimes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fleetfit.core.errors import InvalidModel

WARM_CALLS: Final = 3
"""So many calls are made before any is profiled: the first ones allocate."""
_FEWEST: Final = 3
# Profilers keep what they hear in memory, up to a kilobyte for each operator of each call.
_MOST: Final = 30
LIMIT_S: Final = 3.0
"""No further call is profiled when those before it have taken so long."""


@dataclass(frozen=True)
class OperatorRun:
    """One operator in one call of a build, as often as it ran there (`runs`), and what that took in nanoseconds.

    `name` is the runtime's own: of what several operators of the build were fused into, and with what was added around them.
    `operator` is its type, `placed` the provider or device that ran it, `number_format` such as `float32`; empty where the runtime
    does not tell.
    """

    name: str
    operator: str
    placed: str
    number_format: str
    ns: int
    runs: int = 1


@dataclass(frozen=True)
class Profile:
    """The time of each operator over `calls` calls of a build, all of one key in one (`OperatorRun.runs`, `ns`), largest first.

    `elapsed_ns` is what those calls took in all, the profiler's own work in it. `notes` say what a reader of the times should
    know, each as a clause.
    """

    operators: tuple[OperatorRun, ...]
    calls: int
    elapsed_ns: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoProfile:
    """There is no profile, and `reason` says why, as a clause."""

    reason: str


@dataclass(frozen=True)
class ProfiledCall:
    """One call: its operators, and what it took in nanoseconds."""

    runs: Sequence[OperatorRun]
    elapsed_ns: int


def quicker_half(calls: Sequence[ProfiledCall]) -> list[ProfiledCall]:
    """The quicker half of some calls: what else happens on a device meanwhile slows some of them, and never quickens one."""
    return sorted(calls, key=lambda call: sum(run.ns for run in call.runs))[: (len(calls) + 1) // 2]


def profile_of(calls: Sequence[ProfiledCall], *notes: str) -> Profile | NoProfile:
    """All of these calls in one."""
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for call in calls:
        for run in call.runs:
            sums = found.setdefault((run.name, run.operator, run.placed, run.number_format), [0, 0])
            sums[0] += run.ns
            sums[1] += run.runs
    operators = sorted(
        (OperatorRun(*key, ns=ns, runs=runs) for key, (ns, runs) in found.items()), key=lambda one: -one.ns
    )
    if not any(one.ns for one in operators):
        return NoProfile("its operators are too short for the runtime's profiler, which counts in whole microseconds")
    return Profile(tuple(operators), len(calls), sum(call.elapsed_ns for call in calls), notes)


def call_repeatedly(call: Callable[[], None], progress: Callable[[float], None]) -> list[int]:
    """Call a warm build for at most `LIMIT_S`, three times at the fewest; what each call took, in nanoseconds."""
    began, taken = time.monotonic(), list[int]()
    while len(taken) < _FEWEST or (len(taken) < _MOST and time.monotonic() - began < LIMIT_S):
        before = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - before)
        progress(len(taken) / _MOST)
    return taken


def calls_of(heard: Sequence[Sequence[OperatorRun]], taken: Sequence[int]) -> list[ProfiledCall]:
    """The last calls that a profiler heard of, with what each of those took. Raises InvalidModel where it heard of fewer."""
    if len(heard) < len(taken):
        raise InvalidModel(
            f"the runtime's profiler tells of {len(heard)} calls where {len(taken)} were made; update the runtime or fleetfit"
        )
    return [ProfiledCall(runs, ns) for runs, ns in zip(heard[len(heard) - len(taken) :], taken, strict=True)]
