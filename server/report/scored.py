"""`python -m fleetfit.server.report.scored IN.json OUT.json`: the figure of a user's metric from the scores that it gave.

IN is `{"metric", "split", "count", "path"}`, the path being a .npy of a scorer. OUT is `{"metric": MetricSummary}`, or
`{"refused": SENTENCE}` where these are no scores. The file came from a user: it is read as data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import metric_info
from fleetfit.core.statistics import metric_value
from fleetfit.server.report.analyse import write
from fleetfit.server.report.figures import figure
from fleetfit.server.report.summary import MetricSummary

_HEADER_BYTES: Final = 4096


def read_scores(path: Path, count: int | None = None) -> NDArray[np.float64]:
    """One score per sample, (N,) float64. Raises InvalidData for anything else."""
    if count is not None and path.stat().st_size > 8 * count + _HEADER_BYTES:
        raise InvalidData(f"the scorer sent more than one score for each of {count} samples; update it")
    try:
        scores = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidData("the scorer sent no array of numbers; update it", private=str(error)) from error
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float64 or scores.ndim != 1:
        raise InvalidData("the scorer sent no array of float64, one per sample; update it")
    if count is not None and len(scores) != count:
        raise InvalidData(f"the scorer sent {len(scores)} scores for {count} samples; give one for each")
    if not np.isfinite(scores).all():
        raise InvalidData("the scorer sent scores that are not finite numbers; correct the metric")
    return scores


def main(arguments: Sequence[str]) -> int:
    """Sum one file of scores up."""
    wanted = json.loads(Path(arguments[0]).read_text())
    try:
        scores = read_scores(Path(wanted["path"]), wanted["count"])
        value = figure(metric_value(wanted["metric"], scores))
    except InvalidData as error:
        answer: dict[str, object] = {"refused": error.message}
    else:
        name = metric_info(wanted["metric"]).name
        found = MetricSummary(name=name, split=wanted["split"], figure=value, n=len(scores))
        answer = {"metric": found.model_dump()}
    write(json.dumps(answer), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
