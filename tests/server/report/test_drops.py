from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fleetfit.proto.v1.measurement_pb2 import MetricRun
from fleetfit.server.report.analyse import scores_of, summarize
from fleetfit.server.report.drops import Scored, compare
from fleetfit.server.report.summary import Drops

from .raw import raw_result, write_raw


def scored(name: str, right: int, role: str = "recipe", condition: tuple[int, int] = (1, 1), n: int = 100) -> Scored:
    scores = np.zeros(n, dtype=np.float32)
    scores[:right] = 1
    return Scored(name, role, condition, scores)


def test_losses_are_against_the_control() -> None:
    found = compare("accuracy", [scored("r", 85), scored("o", 90, "original"), scored("c", 92, "control")])
    assert found.against == "c"
    assert {name: round(figure.value, 6) for name, figure in found.by_candidate.items()} == {"o": 2, "c": 0, "r": 7}
    assert (found.by_candidate["c"].low, found.by_candidate["c"].high) == (0, 0)
    low, high = found.by_candidate["r"].low, found.by_candidate["r"].high
    assert low is not None and high is not None and low < 7 < high


def test_training_that_made_the_original_worse_flatters_nothing() -> None:
    found = compare("accuracy", [scored("r", 85), scored("o", 90, "original"), scored("c", 80, "control")])
    assert found.against == "o"
    assert found.by_candidate["r"].value == pytest.approx(5)
    assert found.by_candidate["c"].value == pytest.approx(10)


def test_an_original_that_its_user_trained_stands_in_only_for_what_users_trained() -> None:
    bases = [scored("o", 90, "original"), scored("c", 92, "control")]
    users = dataclasses.replace(scored("u", 95, "control"), recovered=True)
    back = dataclasses.replace(scored("b", 85), recovered=True)
    found = compare("accuracy", [scored("r", 85), back, users, *bases])
    assert found.references == {"o": "c", "c": "c", "u": "u", "r": "c", "b": "u"}
    assert {name: round(found.by_candidate[name].value) for name in "rb"} == {"r": 7, "b": 10}
    assert compare("accuracy", [back, *bases]).references["b"] == "c", "without one it is what fleetfit made"


def test_equal_originals_are_judged_by_the_control() -> None:
    assert compare("accuracy", [scored("o", 90, "original"), scored("c", 90, "control")]).against == "c"


def test_errors_are_lower_is_better() -> None:
    ones = np.ones(50, dtype=np.float32)
    found = compare(
        "mean_absolute_error",
        [
            Scored("o", "original", (1, 1), ones),
            Scored("c", "control", (1, 1), ones * 0.5),
            Scored("r", "recipe", (1, 1), ones * 0.75),
        ],
    )
    assert found.against == "c"
    assert found.by_candidate["r"].value == pytest.approx(0.25)


def test_each_condition_has_its_own_reference() -> None:
    found = compare(
        "accuracy",
        [scored("o1", 90, "original"), scored("r1", 89), scored("o2", 91, "original", (2, 1)), scored("r2", 89, "recipe", (2, 1)),
         scored("lonely", 80, "recipe", (4, 1))],
    )  # fmt: skip
    assert found.references == {"o1": "o1", "r1": "o1", "o2": "o2", "r2": "o2", "lonely": "o2"}
    assert found.by_candidate["r2"].value == pytest.approx(2)


def test_other_samples_are_not_compared() -> None:
    found = compare("accuracy", [scored("o", 90, "original"), scored("r", 40, n=50)])
    assert set(found.by_candidate) == {"o"}
    assert compare("accuracy", [scored("r", 40)]) == Drops(against="", by_candidate={})


def test_metrics_that_need_more_of_each_sample(tmp_path: Path) -> None:
    targets = np.arange(60) % 3
    results = {}
    for name, mistakes in (("o", 0), ("r", 6)):
        chosen = np.where(np.arange(60) < mistakes, (targets + 1) % 3, targets)
        raw = raw_result()
        raw.metric.CopyFrom(MetricRun(metric="macro_f1", split="validation", count=60))
        raw.metric.scores.extend(np.stack([targets, chosen], axis=1).reshape(-1).tolist())
        results[name] = raw
    summary = summarize(results["r"])
    assert summary.metric is not None and (summary.metric.n, summary.metric.figure.value) == (60, pytest.approx(90))
    roles = {"o": "original", "r": "recipe"}
    found = compare("macro_f1", [Scored(name, roles[name], (1, 1), scores_of(results[name])) for name in ("o", "r")])
    drop = found.by_candidate["r"]
    assert drop.value == pytest.approx(10)
    assert drop.low is not None and drop.high is not None and 0 < drop.low < 10 < drop.high < 25


def test_the_child(tmp_path: Path) -> None:
    right = [1.0] * 90 + [0.0] * 10
    wanted = {
        "metric": "accuracy",
        "candidates": [
            {"id": name, "role": role, "threads": 1, "batch": 1, "path": str(write_raw(tmp_path / f"{name}.gz", raw))}
            for name, role, raw in (
                ("o", "original", raw_result(scores=right)),
                ("r", "recipe", raw_result(scores=[0.0] * 3 + right[3:])),
                ("without", "recipe", raw_result()),
            )
        ],
    }
    source, out = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps(wanted))
    subprocess.run([sys.executable, "-m", "fleetfit.server.report.drops", str(source), str(out)], check=True)
    found = Drops.model_validate_json(out.read_text())
    assert set(found.by_candidate) == {"o", "r"}
    assert found.by_candidate["r"].value == pytest.approx(3)
