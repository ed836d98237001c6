from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from fleetfit.agent.measuring.split import open_split
from fleetfit.core.errors import InvalidData

Arrays = Mapping[str, NDArray[Any]]
DTYPES = st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool", "int32", ">i4", "<U3", "S2"])


@st.composite
def splits(draw: st.DrawFn, least: int = 0) -> Arrays:
    """Arrays of one length, of all shapes, dtypes and memory orders that a dataset may have."""
    count = draw(st.integers(least, 9))
    arrays = {}
    for name in draw(st.lists(st.sampled_from(["x", "y", "targets"]), min_size=1, unique=True)):
        shape = (count, *draw(st.lists(st.integers(0, 3), max_size=2)))
        array = draw(npst.arrays(draw(DTYPES), shape))
        arrays[name] = np.asfortranarray(array) if draw(st.booleans()) else array
    return arrays


def packed(arrays: Arrays, *, compressed: bool = True) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def read(content: bytes, sizes: list[int]) -> dict[str, list[NDArray[Any]]]:
    """Everything in pieces of `sizes`, the last again and again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "split.npz"
        path.write_bytes(content)
        with open_split(path) as split:
            pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in split.names}
            done = 0
            while True:
                size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
                rows = split.take(size)
                for name, values in rows.items():
                    assert len(values) == min(size, split.count - done)
                    pieces[name].append(values)
                done += size
                if done >= split.count:
                    return pieces


@settings(deadline=None, max_examples=40)
@given(splits(), st.lists(st.integers(1, 5), min_size=1), st.booleans())
def test_any_split_read_in_pieces_is_what_numpy_reads_at_once(arrays: Arrays, sizes: list[int], packs: bool) -> None:
    content = packed(arrays, compressed=packs)
    pieces = read(content, sizes)
    with np.load(io.BytesIO(content)) as whole:
        assert set(pieces) == set(whole.files)
        for name in whole.files:
            assert {piece.dtype for piece in pieces[name]} == {whole[name].dtype}
            together = np.concatenate(pieces[name], dtype=whole[name].dtype)
            assert together.tobytes() == np.ascontiguousarray(whole[name]).tobytes()
            assert together.shape == whole[name].shape


@settings(deadline=None, max_examples=40)
@given(splits(least=1), st.data())
def test_a_damaged_split_is_refused_and_never_read_wrongly(arrays: Arrays, data: st.DataObject) -> None:
    content = bytearray(packed(arrays))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        pieces = read(bytes(content), [4])
    except InvalidData as error:
        assert "\n" not in error.message and error.message.endswith("push the data again")
        return
    for name in set(pieces) & set(arrays):
        together = np.concatenate(pieces[name], dtype=pieces[name][0].dtype)
        assert together.tobytes() == np.ascontiguousarray(arrays[name]).tobytes()


def test_rows_are_whole_in_fortran_order(tmp_path: Path) -> None:
    images = np.asfortranarray(np.arange(60).reshape(5, 3, 4))
    pieces = read(packed({"x": images}), [2])
    np.testing.assert_array_equal(np.concatenate(pieces["x"]), images)
    assert all(piece.flags.c_contiguous for piece in pieces["x"])


def test_after_the_last_row_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(packed({"x": np.ones((3, 2))}))
    with open_split(tmp_path / "s.npz") as split:
        assert [len(split.take(2)["x"]) for _ in range(3)] == [2, 1, 0]


def test_a_split_of_no_rows_is_a_split(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(packed({"x": np.zeros((0, 4)), "targets": np.zeros(0)}))
    with open_split(tmp_path / "s.npz") as split:
        assert (split.count, split.take(8)["x"].shape) == (0, (0, 4))


def _truncated() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((10, 4)))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("x.npy", file.getvalue()[:-8])
    return archive.getvalue()


def _pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.array([{"code": 1}], dtype=object))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 and then nothing", "cannot be read"),
        (_truncated(), "ends early in 'x.npy'"),
        (_pickled(), "not an array of numbers"),
        (packed({"x": np.float32(3)}), "not an array of numbers with one row per sample"),
        (packed({"x": np.ones((3, 2)), "targets": np.ones(4)}), "different lengths"),
        (packed({}), "has no arrays"),
    ],
)
def test_what_is_no_split_is_refused_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(InvalidData, match=reason), open_split(tmp_path / "s.npz") as split:
        split.take(100)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="cannot be read"), open_split(tmp_path / "none.npz"):
        pass


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), ValueError("a bug elsewhere")])
def test_a_fault_of_who_uses_the_rows_is_not_the_datas(tmp_path: Path, fault: Exception) -> None:
    (tmp_path / "s.npz").write_bytes(packed({"x": np.ones(3)}))
    with pytest.raises(type(fault)) as raised, open_split(tmp_path / "s.npz"):
        raise fault
    assert raised.value is fault
