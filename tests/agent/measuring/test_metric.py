"""The metric of the solo trial, with the runtime that serves, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetfit.agent.measuring import outputs
from fleetfit.core.digests import sha256_file
from fleetfit.core.statistics import metric_value, score_samples
from fleetfit.server.report.analyse import scores_of

from ...runtimes.builds import WEIGHTS, affine, flattened, scalar
from .tasks import prepare, refused_here, solo_here

GENERATOR = np.random.default_rng(7)


def inputs(count: int) -> NDArray[np.float32]:
    return GENERATOR.standard_normal((count, 4)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 150])
def test_accuracy_is_what_numpy_says_sample_by_sample(tmp_path: Path, count: int) -> None:
    x, targets = inputs(count), GENERATOR.integers(0, 3, count)
    prepare(tmp_path, affine(), data={"x": x, "targets": targets}, metric_only=True)
    metric = solo_here(tmp_path).metric
    right = (x @ WEIGHTS).argmax(axis=1) == targets
    assert (metric.metric, metric.split, metric.count) == ("accuracy", "validation", count)
    assert list(metric.scores) == right.astype(float).tolist()
    assert metric.value == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("metric", ["mean_absolute_error", "mean_squared_error"])
def test_errors_are_what_numpy_says_sample_by_sample(tmp_path: Path, metric: str) -> None:
    x, targets = inputs(70), GENERATOR.standard_normal((70, 3)).astype(np.float32)
    prepare(tmp_path, affine(), data={"x": x, "targets": targets}, metric=metric, metric_only=True)
    found = solo_here(tmp_path).metric
    difference = np.abs(x @ WEIGHTS - targets)
    errors = (difference if metric == "mean_absolute_error" else difference**2).mean(axis=1)
    np.testing.assert_allclose(found.scores, errors, rtol=1e-4)
    assert found.value == pytest.approx(errors.mean(), rel=1e-4)


def test_a_build_of_a_fixed_batch_is_judged_on_every_sample_once(tmp_path: Path) -> None:
    x, targets = inputs(10), GENERATOR.integers(0, 3, 10)
    prepare(tmp_path, affine(batch=4), data={"x": x, "targets": targets}, batch=4, metric_only=True)
    metric = solo_here(tmp_path).metric
    assert list(metric.scores) == ((x @ WEIGHTS).argmax(axis=1) == targets).astype(float).tolist()


def test_only_the_metric_is_computed_where_only_it_is_wanted(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), data={"x": inputs(3), "targets": np.zeros(3, np.int64)}, metric_only=True)
    result = solo_here(tmp_path)
    assert result.HasField("metric") and not result.HasField("solo")


def test_an_output_that_is_no_number_counts_as_wrong_and_is_noted(tmp_path: Path) -> None:
    x = inputs(80)
    x[[3, 70], 0] = np.nan
    targets = (x @ WEIGHTS).argmax(axis=1)
    prepare(tmp_path, affine(), data={"x": x, "targets": targets}, metric_only=True)
    result = solo_here(tmp_path)
    assert [n for n, score in enumerate(result.metric.scores) if score == 0] == [3, 70]
    assert list(result.notes) == ["2 of 80 outputs are not numbers (NaN) and count as wrong"]


def test_an_error_that_is_no_number_is_refused(tmp_path: Path) -> None:
    x = inputs(5)
    x[2] = np.inf
    data = {"x": x, "targets": np.zeros((5, 3), np.float32)}
    prepare(tmp_path, affine(), data=data, metric="mean_absolute_error", metric_only=True)
    assert refused_here(tmp_path) == "the build's outputs are not finite numbers for 1 of 5 samples"


@pytest.mark.parametrize(
    ("build", "words"),
    [(scalar(), "no array of numbers with one row per sample"), (flattened(), "gave 20 outputs for 5 targets")],
)
def test_an_output_without_a_row_per_sample_is_refused(tmp_path: Path, build: bytes, words: str) -> None:
    prepare(tmp_path, build, data={"x": inputs(5), "targets": np.zeros(5, np.int64)}, metric_only=True)
    assert words in refused_here(tmp_path)


def test_targets_of_another_shape_are_refused(tmp_path: Path) -> None:
    data = {"x": inputs(5), "targets": np.zeros((5, 2), np.float32)}
    prepare(tmp_path, affine(), data=data, metric="mean_absolute_error", metric_only=True)
    assert "3 values per sample but the targets have 2" in refused_here(tmp_path)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), data={"x": inputs(0), "targets": np.zeros(0, np.int64)}, metric_only=True)
    assert refused_here(tmp_path) == "the validation split is empty; push data with more samples"


def test_data_of_another_model_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), data={"pixels": inputs(4), "targets": np.zeros(4, np.int64)}, metric_only=True)
    assert "has no array 'x'" in refused_here(tmp_path)


def test_a_metric_of_a_later_version_is_refused(tmp_path: Path) -> None:
    data = {"x": inputs(4), "targets": np.zeros(4, np.int64)}
    prepare(tmp_path, affine(), data=data, metric="f1", metric_only=True)
    assert "there is no metric 'f1'" in refused_here(tmp_path)


def test_the_trial_tells_how_far_it_is(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), data={"x": inputs(4), "targets": np.zeros(4, np.int64)}, metric_only=True)
    solo_here(tmp_path)
    assert 0 < float((tmp_path / "out.step").read_text()) <= 1


@pytest.mark.parametrize(("metric", "width"), [("top2_accuracy", 1), ("macro_f1", 2), ("auroc", 4)])
def test_what_comes_back_is_enough_to_compute_the_metric_again(tmp_path: Path, metric: str, width: int) -> None:
    x = inputs(150)
    targets = (x @ WEIGHTS + np.random.default_rng(1).normal(size=(150, 3))).argmax(axis=1)
    prepare(tmp_path, affine(), data={"x": x, "targets": targets}, metric=metric, metric_only=True)
    result = solo_here(tmp_path)
    assert (result.metric.count, len(result.metric.scores)) == (150, 150 * width)
    again = metric_value(metric, scores_of(result))
    assert again.value == result.metric.value
    assert again.value == pytest.approx(
        metric_value(metric, score_samples(metric, {"scores": x @ WEIGHTS}, targets)).value, abs=1e-3
    )


def test_classes_that_are_not_numbers_do_not_end_a_set_metric(tmp_path: Path) -> None:
    x = inputs(20)
    x[3] = np.nan
    targets = np.arange(20) % 3
    prepare(tmp_path, affine(), data={"x": x, "targets": targets}, metric="auroc", metric_only=True)
    result = solo_here(tmp_path)
    assert 0 <= result.metric.value <= 100
    assert result.notes == ["1 of 20 outputs are not numbers (NaN) and count as wrong"]


@pytest.mark.parametrize(("metric", "alike"), [("agreement", 1), ("cosine", 1), ("kl", 0)])
def test_without_targets_a_build_is_judged_beside_the_original(tmp_path: Path, metric: str, alike: float) -> None:
    x = inputs(70)
    task = prepare(tmp_path, affine(), baseline=affine(), data={"x": x}, metric=metric, metric_only=True)
    assert list(solo_here(tmp_path).metric.scores) == pytest.approx([alike] * 70, abs=1e-5)
    task.baseline.build_id = task.candidate.build_id
    (tmp_path / "task.pb").write_bytes(task.SerializeToString())
    assert list(solo_here(tmp_path).metric.scores) == pytest.approx([alike] * 70, abs=1e-5)


def test_without_the_original_there_is_nothing_to_agree_with(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), data={"x": inputs(4)}, metric="agreement", metric_only=True)
    assert "needs the original beside the build" in refused_here(tmp_path)


def test_outputs_are_returned_in_the_split_s_order_and_named_by_their_digest(tmp_path: Path) -> None:
    x = inputs(150)
    prepare(tmp_path, affine(), data={"x": x}, metric="", metric_only=True, return_outputs=True)
    metric = solo_here(tmp_path).metric
    path = tmp_path / "outputs.npz"
    assert (metric.split, metric.count, metric.outputs.sha256) == ("validation", 150, sha256_file(path))
    assert metric.outputs.size_bytes == path.stat().st_size and not metric.scores
    with np.load(path, allow_pickle=False) as found:
        assert found.files == ["scores"]
        np.testing.assert_allclose(found["scores"], x @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_outputs_of_a_fixed_batch_leave_its_padding_out(tmp_path: Path) -> None:
    x = inputs(10)
    prepare(tmp_path, affine(batch=4), data={"x": x}, batch=4, metric="", metric_only=True, return_outputs=True)
    assert solo_here(tmp_path).metric.count == 10
    with np.load(tmp_path / "outputs.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["scores"], x @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_outputs_that_are_too_large_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "MOST_OUTPUT_BYTES", 70_000)
    prepare(tmp_path, affine(), data={"x": inputs(1000)}, metric="", metric_only=True, return_outputs=True)
    assert "push fewer samples" in refused_here(tmp_path)
    assert not list(tmp_path.glob("output*"))
