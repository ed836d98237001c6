"""`python -m fleetfit.server.report.subset IN.json OUT.json`: a part of a split that stands for all of it.

IN is `{"path", "count", "seed", "data", "rows"}`: a split, how many samples to take, and where to write the part (.npz) and
which samples these are (.npy, int64). OUT is `{"count": int, "of": int}`, or `{"refused": SENTENCE}`. A child of the server,
because NumPy has no place in the server's process.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.server.report.analyse import write

_TARGETS: Final = "targets.npy"
_CHUNK_BYTES: Final = 16 << 20


def standing_for(count: int, wanted: int, seed: int, targets: NDArray[Any] | None) -> NDArray[np.int64]:
    """Which of `count` samples to take, sorted, (wanted,) int64: at random, with every class or range of values in its share.

    Samples are sorted by their class, or the mean of their values, those of one class at random, and every so-many-th is taken: so
    each class has its share within one sample, and values are spread as in the whole. The same for the same seed.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    if targets is not None and targets.size:
        flat = targets.reshape(count, -1)
        key = flat[:, 0] if flat.shape[1] == 1 else flat.astype(np.float64).mean(axis=1)
        order = order[np.argsort(key[order], kind="stable")]
    wanted = min(wanted, count)
    # A start at random, so that the first of each stretch is not preferred.
    places = np.floor((np.arange(wanted) + generator.random()) * count / wanted).astype(np.int64)
    return np.sort(order[places]).astype(np.int64)


def take(source: Path, wanted: int, seed: int, data: Path, rows: Path) -> tuple[int, int]:
    """Write the part of a split and its rows; how many samples of how many. Raises InvalidData for a file that is none."""
    try:
        with zipfile.ZipFile(source) as archive:
            targets = None
            if _TARGETS in archive.namelist():
                with archive.open(_TARGETS) as file:
                    targets = np.lib.format.read_array(file, allow_pickle=False)
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            with archive.open(names[0]) as file:
                count = _header(file)[0][0]
            chosen = standing_for(count, wanted, seed, targets)
            with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED, allowZip64=True) as made:
                for name in names:
                    with archive.open(name) as file, made.open(name, "w", force_zip64=True) as out:
                        _copy(file, out, chosen, count)
    except (OSError, ValueError, IndexError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidData(f"the split cannot be read ({error}); push the data again") from error
    np.save(rows, chosen)
    return len(chosen), count


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or not shape:
        raise ValueError("it holds something that is no array of numbers with one row per sample")
    return shape, fortran, dtype


def _copy(file: IO[bytes], out: IO[bytes], chosen: NDArray[np.int64], count: int) -> None:
    """The chosen rows of an array, in stretches: a split may be larger than memory."""
    shape, fortran, dtype = _header(file)
    if shape[0] != count:
        raise ValueError("its arrays have different lengths")
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(chosen), *shape[1:]),
    }
    np.lib.format.write_array_header_2_0(out, described)
    each = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if not each:
        return
    if fortran and len(shape) > 1:
        content = np.frombuffer(file.read(count * each), dtype=dtype, count=count * each // dtype.itemsize)
        out.write(np.ascontiguousarray(content.reshape(shape[::-1]).transpose()[chosen]).tobytes())
        return
    stretch = max(1, _CHUNK_BYTES // each)
    for at in range(0, count, stretch):
        size = min(stretch, count - at)
        part = np.frombuffer(_exactly(file, size * each), dtype=np.uint8).reshape(size, each)
        low, high = np.searchsorted(chosen, (at, at + size))
        out.write(part[chosen[low:high] - at].tobytes())


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise EOFError("it ends early")
    return content


def main(arguments: Sequence[str]) -> int:
    """Take a part of one split."""
    wanted = json.loads(Path(arguments[0]).read_text())
    try:
        count, of = take(
            Path(wanted["path"]), wanted["count"], wanted["seed"], Path(wanted["data"]), Path(wanted["rows"])
        )
        answer: dict[str, object] = {"count": count, "of": of}
    except InvalidData as error:
        answer = {"refused": error.message}
    write(json.dumps(answer), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
