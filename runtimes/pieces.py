"""A batch in pieces, for what was compiled for fewer samples at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fleetfit.runtimes.base import Arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pieces(feeds: Arrays, size: int) -> Iterable[dict[str, NDArray[Any]]]:
    """The samples in pieces of `size`; the last one is filled up with its last sample."""
    import numpy as np

    count = len(next(iter(feeds.values())))
    for begin in range(0, count, size):
        piece = {name: values[begin : begin + size] for name, values in feeds.items()}
        short = size - min(size, count - begin)
        yield {name: np.concatenate([v, np.repeat(v[-1:], short, axis=0)]) if short else v for name, v in piece.items()}
