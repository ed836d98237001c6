"""The figures of a profile: what each operator's raw time carries. No NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fleetfit.proto.printable import printable
from fleetfit.proto.v1 import measurement_pb2

_MS: Final = 1e-6
# What is fused has all its parts in its name.
_LONGEST: Final = 300


@dataclass(frozen=True)
class OperatorFigures:
    """One operator. `ms` is its time in a call of the build, `runs` how often it runs in one, `share` of all operators' time."""

    name: str
    operator: str
    placed: str
    number_format: str
    runs: float
    ms: float
    share: float


@dataclass(frozen=True)
class ProfileFigures:
    """All operators, largest first; their shares add up to 1, their times to `operators_ms`.

    `call_ms` is what a call took with the profiler on, its own work and that between operators in it; both are means.
    """

    operators: tuple[OperatorFigures, ...]
    operators_ms: float
    call_ms: float
    calls: int


def profile_figures(run: measurement_pb2.ProfileRun) -> ProfileFigures | None:
    """None where there is no profile: what a device sends is not believed to be whole."""
    kept = [one for one in run.operators if one.total_ns > 0 and one.runs > 0]
    total_ns = sum(one.total_ns for one in kept)
    if run.calls <= 0 or run.elapsed_ns <= 0 or total_ns <= 0:
        return None
    operators = tuple(
        OperatorFigures(
            name=_text(one.name),
            operator=_text(one.operator),
            placed=_text(one.placed),
            number_format=_text(one.number_format),
            runs=one.runs / run.calls,
            ms=one.total_ns * _MS / run.calls,
            share=one.total_ns / total_ns,
        )
        for one in sorted(kept, key=lambda one: -one.total_ns)
    )
    return ProfileFigures(operators, total_ns * _MS / run.calls, run.elapsed_ns * _MS / run.calls, run.calls)


def _text(said: str) -> str:
    return printable(said)[:_LONGEST]
