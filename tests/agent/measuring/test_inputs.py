from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.measuring.inputs import fixed_batch, metric_batches, timing_feeds
from fleetfit.agent.measuring.split import open_split
from fleetfit.core.errors import InvalidData, InvalidModel
from fleetfit.proto.v1 import common_pb2, measurement_pb2


def task(*shapes: Sequence[int], batch: int = 2, dtype: str = "float32") -> measurement_pb2.MeasureTask:
    inputs = [common_pb2.TensorSpec(name="xyz"[n], dtype=dtype, shape=shape) for n, shape in enumerate(shapes)]
    return measurement_pb2.MeasureTask(candidate=measurement_pb2.BuildRef(inputs=inputs), batch=batch)


def split_of(folder: Path, count: int) -> Path:
    path = folder / f"{count}.npz"
    np.savez(path, x=np.arange(count * 3, dtype=np.float32).reshape(count, 3), targets=np.arange(count))
    return path


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [([(-1, 3)], None), ([(4, 3)], 4), ([(-1, 3), (8, 2)], 8), ([(0, 3)], None), ([()], None), ([], None)],
)
def test_the_only_batch_that_a_build_takes(shapes: list[tuple[int, ...]], batch: int | None) -> None:
    assert fixed_batch(task(*shapes).candidate) == batch


def test_real_rows_are_timed_where_there_are_any(tmp_path: Path) -> None:
    with open_split(split_of(tmp_path, 5)) as split:
        feeds = timing_feeds(task((-1, 3)), split)
    np.testing.assert_array_equal(feeds["x"], [[0, 1, 2], [3, 4, 5]])


def test_too_few_rows_are_taken_again_and_again(tmp_path: Path) -> None:
    with open_split(split_of(tmp_path, 2)) as split:
        feeds = timing_feeds(task((-1, 3), batch=5), split)
    np.testing.assert_array_equal(feeds["x"][:, 0], [0, 3, 0, 3, 0])
    assert feeds["x"].flags.c_contiguous


def test_an_input_that_the_data_lacks_is_made_up(tmp_path: Path) -> None:
    with open_split(split_of(tmp_path, 4)) as split:
        feeds = timing_feeds(task((-1, 3), (-1, 7, -1)), split)
    assert list(feeds) == ["x", "y"]
    assert (feeds["y"].shape, feeds["y"].dtype) == ((2, 7, 1), np.float32)


def test_a_split_without_rows_is_made_up_for(tmp_path: Path) -> None:
    with open_split(split_of(tmp_path, 0)) as split:
        assert timing_feeds(task((-1, 3), batch=4), split)["x"].shape == (4, 3)


@given(st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]), st.integers(1, 9))
def test_made_up_inputs_are_of_the_builds_dtype_and_the_same_each_time(dtype: str, batch: int) -> None:
    first, second = (timing_feeds(task((-1, 3), batch=batch, dtype=dtype), None)["x"] for _ in range(2))
    assert (first.dtype, first.shape) == (np.dtype(dtype), (batch, 3))
    np.testing.assert_array_equal(first, second)
    if first.dtype.kind != "f":
        # Valid as an index of any embedding.
        assert set(np.unique(first).tolist()) <= {0, 1}


def test_a_dtype_that_cannot_be_made_up_asks_for_data() -> None:
    with pytest.raises(InvalidModel, match="input 'x' is of type bfloat17, .* give data with --data"):
        timing_feeds(task((-1, 3), dtype="bfloat17"), None)


def test_another_batch_than_the_builds_own_is_refused() -> None:
    with pytest.raises(InvalidModel, match="takes batches of 8 only; measure it with --batch 8"):
        timing_feeds(task((8, 3), batch=1), None)


@given(count=st.integers(0, 20), size=st.integers(1, 7))
def test_every_sample_is_judged_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int
) -> None:
    with open_split(split_of(tmp_path_factory.getbasetemp(), count)) as split:
        batches = list(metric_batches(task((-1, 3)), split, size))
    assert [value for _, targets, _ in batches if targets is not None for value in targets] == list(range(count))
    assert all(len(feeds["x"]) == real <= size for feeds, _, real in batches)
    assert [row[0] for feeds, _, _ in batches for row in feeds["x"]] == [3.0 * n for n in range(count)]


def test_the_last_batch_is_filled_up_for_a_build_that_needs_it_full(tmp_path: Path) -> None:
    with open_split(split_of(tmp_path, 5)) as split:
        batches = list(metric_batches(task((4, 3)), split, 4))
    assert [(len(feeds["x"]), real) for feeds, _, real in batches] == [(4, 4), (4, 1)]
    np.testing.assert_array_equal(batches[1][0]["x"], [[12, 13, 14]] * 4)


@pytest.mark.parametrize("missing", ["y", "targets"])
def test_data_that_does_not_fit_the_model_is_refused(tmp_path: Path, missing: str) -> None:
    arrays = {"x": np.ones((2, 3)), "y": np.ones((2, 3)), "targets": np.ones(2)}
    del arrays[missing]
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    with open_split(tmp_path / "s.npz") as split, pytest.raises(InvalidData, match=f"has no array '{missing}'"):
        next(metric_batches(task((-1, 3), (-1, 3)), split, 4))
