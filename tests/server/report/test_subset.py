"""A part of a split that stands for all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetfit.server.report import subset
from fleetfit.server.report.subset import standing_for


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_every_class_has_its_share(count: int, wanted: int, seed: int, classes: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, count)
    rows = standing_for(count, wanted, seed, labels)
    assert len(rows) == min(count, wanted) == len(set(rows.tolist()))
    assert (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < count
    for label in range(classes):
        share = (labels == label).sum() * len(rows) / count
        # Those of one class lie together: a systematic sample has their share, but for its ends.
        assert abs((labels[rows] == label).sum() - share) < 2
    np.testing.assert_array_equal(rows, standing_for(count, wanted, seed, labels))


@pytest.mark.parametrize("shape", [(1000,), (1000, 3)])
def test_values_are_spread_as_in_the_whole(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).lognormal(size=shape)
    rows = standing_for(1000, 50, 3, values)
    means = values.reshape(1000, -1).mean(axis=1)
    for share in (0.1, 0.5, 0.9):
        assert abs((means[rows] <= np.quantile(means, share)).mean() - share) <= 0.021


def test_every_sample_has_the_same_chance_and_the_seed_decides() -> None:
    labels = np.resize(np.arange(3), 30)
    taken = np.zeros(30)
    for seed in range(3000):
        taken[standing_for(30, 7, seed, labels)] += 1
    assert np.abs(taken / 3000 - 7 / 30).max() < 0.04
    assert len({tuple(standing_for(30, 7, seed, None).tolist()) for seed in range(20)}) > 10


def carried_out(folder: Path, arrays: dict[str, NDArray[Any]], count: int, *, packed: bool = False) -> Any:
    (np.savez_compressed if packed else np.savez)(folder / "split.npz", **arrays)  # type: ignore[arg-type]
    wanted = {"path": str(folder / "split.npz"), "count": count, "seed": 5}
    wanted |= {"data": str(folder / "part.npz"), "rows": str(folder / "rows.npy")}
    (folder / "in.json").write_text(json.dumps(wanted))
    assert subset.main([str(folder / "in.json"), str(folder / "out.json")]) == 0
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("packed", [False, True])
def test_all_arrays_keep_the_same_rows_as_they_were(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subset, "_CHUNK_BYTES", 100)
    generator = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "image": generator.integers(0, 255, (90, 3, 4, 4), dtype=np.uint8),
        "columns": np.asfortranarray(generator.normal(size=(90, 5))),
        "flag": generator.random(90) < 0.5,
        "nothing": np.zeros((90, 0), np.float32),
        "targets": generator.integers(0, 4, 90),
    }
    assert carried_out(tmp_path, arrays, 33, packed=packed) == {"count": 33, "of": 90}
    rows = np.load(tmp_path / "rows.npy")
    with np.load(tmp_path / "part.npz") as part:
        assert set(part.files) == set(arrays)
        for name, values in arrays.items():
            assert part[name].dtype == values.dtype
            np.testing.assert_array_equal(part[name], values[rows])
    before = (tmp_path / "part.npz").read_bytes()
    carried_out(tmp_path, arrays, 33, packed=packed)
    assert (tmp_path / "part.npz").read_bytes() == before, "the same bytes have the same name"


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_split_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    carried_out(tmp_path, {"x": np.zeros((3, 2))}, 2)
    (tmp_path / "split.npz").write_bytes(content)
    assert subset.main([str(tmp_path / "in.json"), str(tmp_path / "out.json")]) == 0
    assert "push the data again" in json.loads((tmp_path / "out.json").read_text())["refused"]


def test_objects_are_never_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    carried_out(tmp_path, {"x": np.zeros((3, 2))}, 2)
    (tmp_path / "split.npz").write_bytes((tmp_path / "objects.npz").read_bytes())
    subset.main([str(tmp_path / "in.json"), str(tmp_path / "out.json")])
    assert "refused" in json.loads((tmp_path / "out.json").read_text())
