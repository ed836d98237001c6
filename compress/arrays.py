"""Reading a split from the `.npz` that intake wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fleetfit.compress.passes.base import Arrays
from fleetfit.core.errors import InvalidData

TARGETS = "targets"


def read_split(path: Path) -> Arrays:
    """The arrays of one split, in their stored dtype. Raises InvalidData where the file is not one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise InvalidData(f"{path.name} cannot be read ({error}); push the data again") from error
    targets = arrays.pop(TARGETS, None)
    if not arrays or not len(next(iter(arrays.values()))):
        raise InvalidData(f"{path.name} holds no samples; push data that has some")
    return Arrays(arrays, targets)
