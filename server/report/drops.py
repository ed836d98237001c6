"""`python -m fleetfit.server.report.drops IN.json OUT.json`: how much each candidate of a device loses, sample by sample.

IN is `{"metric": str, "candidates": [{"id", "role", "threads", "batch", "recovered", "path"}]}`, the paths being raw results,
or, with `"scored": true`, the scores of a user's metric. `recovered`: its user trained it, outside fleetfit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.metrics import metric_info
from fleetfit.core.statistics import metric_point, paired_drop
from fleetfit.proto.figures import scores_of
from fleetfit.server.report.analyse import read_result, write
from fleetfit.server.report.figures import figure
from fleetfit.server.report.scored import read_scores
from fleetfit.server.report.summary import Drops, Figure

Scores = NDArray[np.floating[Any]]
_NOTHING: Final = Figure(value=0.0, low=0.0, high=0.0)


@dataclass(frozen=True)
class Scored:
    """A candidate with its scores for each sample of the split, in the split's order."""

    id: str
    role: str
    condition: tuple[int, int]
    scores: Scores
    recovered: bool = False


def compare(metric: str, candidates: Sequence[Scored]) -> Drops:
    """The loss of each candidate against what stands for the original under its condition.

    That is the control, the original given the same training, unless the original is better: training that made the
    original worse must not make compression look good. An original that its user trained stands in only for what users trained:
    nothing else was given that training. A candidate scored on another number of samples is left out.
    """
    ordered = sorted(candidates, key=lambda one: (one.condition, one.role != "original", one.role != "control", one.id))
    bases = [one for one in ordered if one.role in ("original", "control")]
    by_candidate: dict[str, Figure] = {}
    references: dict[str, str] = {}
    for one in ordered:
        # The metric hardly depends on threads and batch: without an original under this condition another's will do.
        given = [base for base in bases if one.recovered or not base.recovered]
        near = [base for base in given if base.condition == one.condition] or given
        fitting = [base for base in near if len(base.scores) == len(one.scores)]
        if not fitting:
            continue
        reference = max(fitting, key=lambda base: (_goodness(metric, base), base.role == "control"))
        references[one.id] = reference.id
        itself = one is reference
        by_candidate[one.id] = _NOTHING if itself else figure(paired_drop(metric, one.scores, reference.scores))
    against = next((references[one.id] for one in ordered if one.id in references), "")
    return Drops(against=against, by_candidate=by_candidate, references=references)


def _goodness(metric: str, one: Scored) -> float:
    value = metric_point(metric, one.scores)
    return value if metric_info(metric).higher_is_better else -value


def main(arguments: Sequence[str]) -> int:
    """Compare the candidates that a file lists."""
    source, out = Path(arguments[0]), Path(arguments[1])
    wanted = json.loads(source.read_text())
    found = []
    for one in wanted["candidates"]:
        path = Path(one["path"])
        scores: Scores = read_scores(path) if wanted.get("scored") else scores_of(read_result(path))
        if len(scores):
            condition = one["threads"], one["batch"]
            found.append(Scored(one["id"], one["role"], condition, scores, one.get("recovered", False)))
    write(compare(wanted["metric"], found).model_dump_json(), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
