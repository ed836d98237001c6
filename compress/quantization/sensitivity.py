"""Mixed precision: which operators must stay in floats for the outputs to stay within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from fleetfit.compress.quantization.operators import HEAVY
from fleetfit.core.errors import InvalidRecipe

TOLERANCE: Final = 0.05
"""The output error that is aimed at where none is asked for."""
_MOST_GROUPS: Final = 48
_MOST_TRIALS: Final = 80
# The scan and the final judgement use different samples.
_MARGIN: Final = 0.9


@dataclass(frozen=True)
class Scan:
    """What stays in floats, the output error before and after, and how many builds were tried."""

    keep: frozenset[str]
    before: float
    after: float
    trials: int


def groups_of(model: onnx.ModelProto, candidates: Collection[str]) -> list[frozenset[str]]:
    """The named nodes in groups: each convolution or product with the cheap operators that follow it.

    A cheap operator alone between quantized ones would save nothing in floats. Where there are many, neighbours are merged.
    """
    group_of: dict[str, int] = {}
    groups: list[list[str]] = []
    for node in model.graph.node:
        before = next((group_of[name] for name in node.input if name in group_of), None)
        if node.name in candidates:
            if node.op_type in HEAVY or before is None:
                before = len(groups)
                groups.append([])
            groups[before].append(node.name)
        if before is not None:
            group_of.update(dict.fromkeys(node.output, before))
    size = math.ceil(len(groups) / _MOST_GROUPS) or 1
    return [frozenset(sum(groups[at : at + size], [])) for at in range(0, len(groups), size)]


def scan(
    build: Callable[[Collection[str]], bytes],
    error_of: Callable[[bytes], float],
    groups: Sequence[frozenset[str]],
    tolerance: float,
    report: Callable[[float], None],
) -> Scan:
    """The operators whose staying in floats brings the error down to `tolerance`, as few as were found.

    Each group is tried alone first; then the groups that helped most are kept in floats together, as many as it takes, and
    those without which it still holds are given back. At most 80 builds. Raises InvalidRecipe where no mixture holds.
    """
    trials = 0

    def error(kept: Iterable[frozenset[str]]) -> float:
        nonlocal trials
        trials += 1
        report(min(1.0, trials / (len(groups) + 12)))
        return error_of(build(frozenset().union(*kept)))

    aim = tolerance * _MARGIN
    before = error([])
    if before <= aim:
        return Scan(frozenset(), before, before, trials)
    alone = [error([group]) for group in groups]
    ranked = [groups[at] for at in sorted(range(len(groups)), key=lambda at: alone[at])]
    # The least number of groups, by bisection; all of them in floats would be no quantization.
    low, high, after = 1, len(ranked) - 1, math.inf
    best: list[frozenset[str]] | None = None
    while low <= high:
        middle = (low + high) // 2
        found = error(ranked[:middle])
        if found <= aim:
            best, after, high = ranked[:middle], found, middle - 1
        else:
            low = middle + 1
    if best is None:
        raise InvalidRecipe(
            f"quantize reaches an output error of {min([before, *alone]):.3g} with one operator in floats and misses "
            f"{tolerance:g} with all but one of them in floats; allow a larger max_error, or leave the step out",
            field="keep_float",
        )
    for group in reversed(list(best)):
        if len(best) == 1 or trials >= _MOST_TRIALS:
            break
        fewer = [one for one in best if one != group]
        found = error(fewer)
        if found <= aim:
            best, after = fewer, found
    return Scan(frozenset().union(*best), before, after, trials)
