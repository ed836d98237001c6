"""Reading an .npz row by row: a device needs memory for a batch, not for the whole split."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import FleetfitError, InvalidData

TARGETS = "targets"
Rows = dict[str, NDArray[Any]]


class Split:
    """The arrays of a split, all of one length, read from the front."""

    def __init__(self, archive: zipfile.ZipFile, opened: ExitStack) -> None:
        self._readers = {
            name.removesuffix(".npy"): _reader(name, opened.enter_context(archive.open(name)))
            for name in archive.namelist()
            if name.endswith(".npy")
        }
        counts = {reader.left for reader in self._readers.values()}
        if not counts:
            raise InvalidData("the data that came with the task has no arrays; push the data again")
        if len(counts) != 1:
            raise InvalidData("the data that came with the task has arrays of different lengths; push the data again")
        self.count = counts.pop()

    @property
    def names(self) -> frozenset[str]:
        """Names of the arrays, `targets` among them."""
        return frozenset(self._readers)

    def take(self, count: int) -> Rows:
        """The next rows of every array: `count`, or fewer at the end. Raises InvalidData where they cannot be read."""
        with _readable():
            return {name: reader.take(count) for name, reader in self._readers.items()}


class _Streamed:
    def __init__(self, name: str, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._name, self._file, self._shape, self._dtype = name, file, shape[1:], dtype
        self.left = shape[0]

    def take(self, count: int) -> NDArray[Any]:
        count = min(count, self.left)
        array = np.empty((count, *self._shape), dtype=self._dtype)
        view = array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")
        at = 0
        while at < len(view):
            chunk = self._file.read(min(len(view) - at, 1 << 20))
            if not chunk:
                raise InvalidData(f"the data that came with the task ends early in '{self._name}'; push the data again")
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
        self.left -= count
        return array


class _Whole:
    """An array whose rows do not lie one after another (Fortran order)."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array, self.left = array, len(array)

    def take(self, count: int) -> NDArray[Any]:
        at = len(self._array) - self.left
        taken = np.ascontiguousarray(self._array[at : at + count])
        self.left -= len(taken)
        return taken


def _reader(name: str, file: IO[bytes]) -> _Streamed | _Whole:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"format version {version} of '{name}'")
    if dtype.hasobject or not shape:
        raise ValueError(f"'{name}' is not an array of numbers with one row per sample")
    if fortran and len(shape) > 1:
        count = int(np.prod(shape))
        content = np.frombuffer(file.read(count * dtype.itemsize), dtype=dtype, count=count)
        return _Whole(content.reshape(shape[::-1]).transpose())
    return _Streamed(name, file, shape, dtype)


@contextmanager
def open_split(path: Path) -> Iterator[Split]:
    """Open a split. Raises InvalidData for a file that is none."""
    with ExitStack() as opened:
        with _readable():
            split = Split(opened.enter_context(zipfile.ZipFile(path)), opened)
        # Not around this: what goes wrong while the rows are used (a full disk, for one) is not the data's fault.
        yield split


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (FleetfitError, MemoryError):
        raise
    except Exception as error:  # what a damaged file makes zipfile, zlib, numpy and tokenize raise has no common root
        said = " ".join(str(error).split()) or type(error).__name__
        raise InvalidData(
            f"the data that came with the task cannot be read ({said[:200]}); push the data again"
        ) from error
