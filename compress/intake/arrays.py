"""An uploaded `.npz`, read without unpickling and without trusting its headers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fleetfit.compress.intake.zipcheck import ZipLimits, open_checked
from fleetfit.core.errors import InvalidData

Array = npt.NDArray[np.generic]
CURE = "make it again with numpy.savez('data.npz', name=array, ..., targets=array) from plain numeric arrays"
# Numbers of every kind; text only in `groups`, which says so by its kind.
_KINDS = "biufUS"
_LIMITS = ZipLimits(entries=200)
_MAX_HEADER = 10_000


def read_arrays(path: Path, what: str) -> dict[str, Array]:
    """Every array of an `.npz`, in its stored dtype.

    Args:
        path: The file.
        what: What to call it in an error, for example "The data file".

    Raises:
        InvalidData: It is no `.npz`, damaged, a zip bomb, or holds anything but numbers and text.
    """
    with open_checked(path, what=what, cure=CURE, error=InvalidData, limits=_LIMITS) as archive:
        found: dict[str, Array] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if not info.filename.endswith(".npy") or not name.isidentifier():
                raise InvalidData(
                    f"{what} holds {info.filename[:60]!r}, which is not an array with a plain name; {CURE}."
                )
            found[name] = _read(archive, info, name, what)
    if not found:
        raise InvalidData(f"{what} is empty; {CURE}.")
    return found


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, what: str) -> Array:
    with archive.open(info) as entry:
        try:
            version = np.lib.format.read_magic(entry)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(entry, max_header_size=_MAX_HEADER)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(entry, max_header_size=_MAX_HEADER)
            else:
                raise ValueError(f"version {version}")
        except Exception as failure:  # noqa: BLE001 - whatever a crafted header raises in NumPy's parser
            raise InvalidData(
                f"{what} has an unreadable array {name!r}; {CURE}.", private=f"{type(failure).__name__}: {failure}"
            ) from failure
        if dtype.hasobject:
            raise InvalidData(
                f"{what} holds Python objects in {name!r}, which are never unpickled; convert it to numbers, for example "
                f"numpy.stack(list(array)), and save it again."
            )
        if dtype.kind not in _KINDS or dtype.names or dtype.subdtype or dtype.itemsize == 0:
            raise InvalidData(f"{what} has the dtype {dtype} in {name!r}; {CURE}.")
        count = 1
        for size in shape:
            count *= int(size)
        if (
            any(size < 0 for size in shape)
            or len(shape) > 16
            or entry.tell() + count * dtype.itemsize != info.file_size
        ):
            raise InvalidData(
                f"{what} claims the shape {shape} for {name!r} but holds another number of bytes; {CURE}."
            )
        content = entry.read(count * dtype.itemsize)
        # A last read makes the zip's checksum be compared.
        if len(content) != count * dtype.itemsize or entry.read(1):
            raise InvalidData(f"{what} is damaged at {name!r}; {CURE}.")
    array = np.frombuffer(content, dtype=dtype)
    array = array.reshape(shape, order="F" if fortran else "C")
    # A file from a machine of the other byte order.
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
