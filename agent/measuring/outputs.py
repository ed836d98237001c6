"""A build's outputs over a split, kept for somebody else to score: one .npz, written batch by batch."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.figures import size
from fleetfit.proto.versions import MOST_OUTPUT_BYTES

# Headers of the arrays and of the archive: far less.
_AROUND_BYTES: Final = 1 << 16


class OutputsFile:
    """Collects outputs in `folder`. Only their maps are in memory, and the kernel may write those out."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._arrays: dict[str, NDArray[Any]] = {}
        self.done = 0

    def add(self, outputs: Mapping[str, NDArray[Any]], real: int) -> None:
        """The next `real` rows of every output. Raises InvalidData where they are too large, or no rows of numbers."""
        rows = {name: values for name, values in outputs.items() if np.ndim(values) and len(values) == real}
        if self.done == 0:
            self._begin(rows)
        for name, target in self._arrays.items():
            if name not in rows or rows[name].shape[1:] != target.shape[1:]:
                raise InvalidData(
                    f"the output '{name}' has another shape for some samples, so it cannot be returned as one array; "
                    "export a model whose outputs have one shape"
                )
            target[self.done : self.done + real] = rows[name]
        self.done += real

    def _begin(self, rows: Mapping[str, NDArray[Any]]) -> None:
        numbers = {name: values for name, values in rows.items() if values.dtype.kind in "fiub"}
        if not numbers:
            raise InvalidData("the model has no output with one row of numbers per sample; export one that has")
        total = sum(values.nbytes // len(values) for values in numbers.values()) * self._count
        if total > MOST_OUTPUT_BYTES - _AROUND_BYTES:
            raise InvalidData(
                f"the outputs for {self._count} samples are {size(total)}, and at most {size(MOST_OUTPUT_BYTES)} are returned for "
                "scoring; push fewer samples, or export a model that returns less"
            )
        for at, (name, values) in enumerate(numbers.items()):
            self._arrays[name] = np.lib.format.open_memmap(
                self._folder / f"output-{at}.npy", mode="w+", dtype=values.dtype, shape=(self._count, *values.shape[1:])
            )

    def close(self, target: Path) -> None:
        """Put the arrays into `target`, without compression: outputs are noise to it."""
        names, self._arrays = list(self._arrays), {}
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for at, name in enumerate(names):
                path = self._folder / f"output-{at}.npy"
                archive.write(path, f"{name}.npy")
                path.unlink()
