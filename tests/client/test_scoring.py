"""Loading and calling a user's metric."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fleetfit.client.scoring import MetricFailed, load_metric
from fleetfit.core.errors import InvalidInput

SOURCE = """
import numpy as np
def good(outputs, targets): return outputs["y"].sum(axis=1)
good.lower_is_better = True
good.unit = "words"
def one(outputs, targets): return 0.5
def nothing(outputs, targets): return None
def strange(outputs, targets): return np.full(len(outputs["y"]), np.nan)
def breaks(outputs, targets):
    return targets[0]
value = 3
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_judge.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_judge", raising=False)
    return "own_judge"


def test_a_function_says_what_its_scores_mean_and_options_overrule_it(judge: str) -> None:
    found = load_metric(f"{judge}:good")
    assert (found.name, found.lower_is_better, found.unit) == ("good", True, "words")
    other = load_metric(f"{judge}:good", name="best", lower_is_better=False, unit="")
    assert (other.name, other.lower_is_better, other.unit) == ("best", False, "")
    scores = found.scores({"y": np.ones((4, 2), np.float32)}, None, 4)
    assert scores.dtype == np.float64 and scores.tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one", r"shape \(\) where \(4,\)"),
        ("nothing", "it returned|shape"),
        ("strange", "4 of its 4 scores are not finite"),
        ("breaks", r"TypeError: .* \(own_judge.py, line 10\)"),
    ],
)
def test_a_metric_that_gives_no_scores_is_told_why(judge: str, name: str, said: str) -> None:
    with pytest.raises(MetricFailed, match=said):
        load_metric(f"{judge}:{name}").scores({"y": np.ones((4, 2))}, None, 4)


@pytest.mark.parametrize("text", ["own_judge", "own_judge:missing", "own_judge:value", "no_such_module:f", "math:sin"])
def test_what_is_no_function_is_refused(judge: str, text: str) -> None:
    with pytest.raises(InvalidInput):
        load_metric(text)
