"""Rounding weights so that a layer's outputs change least, not each weight by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky

_DAMPING: Final = 0.01
_BLOCK: Final = 64
# More places of one sample say little that is new.
_PLACES: Final = 256
# Samples; a copy for every place of the kernel is held.
_AT_ONCE: Final = 4
# The work grows with the third power of it.
MOST_COLUMNS: Final = 2048


def compensated(
    weight: NDArray[np.float64], moments: NDArray[np.float64], scale: NDArray[np.float64], low: int, high: int
) -> NDArray[np.int64]:
    """Whole numbers q, shape [rows, columns], between `low` and `high`, so that (q * scale - weight) x is small.

    `moments`, shape [columns, columns], is the sum of x x^T over inputs x; `scale`, shape [rows, 1], stays as it is. Columns are
    rounded one by one, those with the largest inputs first, and each one's error is made up for by those that follow. Where
    that is not better than rounding to the nearest on these moments, a row is rounded to the nearest. Source: Frantar et al.,
    "GPTQ: Accurate post-training quantization for generative pre-trained transformers" (2022), section 3.3.
    """
    nearest = np.clip(np.round(weight / scale), low, high)
    size = len(moments)
    damped = moments + np.eye(size) * (_DAMPING * np.trace(moments) / size)
    if not np.trace(moments) > 0 or not np.isfinite(damped).all():
        return nearest.astype(np.int64)
    order = np.argsort(-np.diag(moments), kind="stable")
    try:
        inverse = np.linalg.inv(damped[np.ix_(order, order)])
        upper = cholesky((inverse + inverse.T) / 2, lower=False)
    except LinAlgError:
        return nearest.astype(np.int64)
    rest = weight[:, order]
    chosen = np.empty_like(rest)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = np.empty((len(rest), end - start))
        for at in range(start, end):
            chosen[:, at] = np.clip(np.round(rest[:, at] / scale[:, 0]), low, high)
            errors[:, at - start] = (rest[:, at] - chosen[:, at] * scale[:, 0]) / upper[at, at]
            rest[:, at + 1 : end] -= np.outer(errors[:, at - start], upper[at, at + 1 : end])
        rest[:, end:] -= errors @ upper[start:end, end:]
    found = np.empty_like(chosen)
    found[:, order] = chosen
    worse = _error(found * scale - weight, moments) > _error(nearest * scale - weight, moments)
    found[worse] = nearest[worse]
    return found.astype(np.int64)


def _error(difference: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    error: NDArray[np.float64] = ((difference @ moments) * difference).sum(1)
    return error


def moments_of(node: onnx.NodeProto, kernel: tuple[int, ...], batches: Iterable[NDArray[Any]]) -> NDArray[np.float64]:
    """What a convolution's or linear layer's weights are multiplied with, as sums of x x^T; shape [groups, columns, columns].

    `kernel` is the weight's shape from its third axis on, empty for a linear layer. Of each sample at most 256 places count, in
    even steps: neighbours say nearly the same.
    """
    total: NDArray[np.float64] | None = None
    for array in batches:
        for at in range(0, len(array), _AT_ONCE):
            columns = _columns(node, kernel, array[at : at + _AT_ONCE])
            found = np.matmul(columns.transpose(0, 2, 1), columns).astype(np.float64)
            total = found if total is None else total + found
    assert total is not None  # noqa: S101 - there is a batch
    return total


def _columns(node: onnx.NodeProto, kernel: tuple[int, ...], array: NDArray[Any]) -> NDArray[Any]:
    """Shape [groups, samples and places, inputs of a group and places of the kernel]."""
    if not kernel:
        return array.reshape(1, -1, array.shape[-1])
    settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    axes = len(kernel)
    strides, dilations = settings.get("strides", [1] * axes), settings.get("dilations", [1] * axes)
    pads, groups = settings.get("pads", [0] * (2 * axes)), settings.get("group", 1)
    padded = np.pad(array, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, 2 + axes)))
    every = [slice(None, None, step) for step in (1, 1, *strides, *dilations)]
    windows = windows[tuple(every)]
    places = windows.shape[2 : 2 + axes]
    total = int(np.prod(places))
    taken = np.unravel_index(np.arange(0, total, -(-total // _PLACES)), places)
    # All of the first two axes, those places, all of the kernel.
    picked: tuple[Any, ...] = (slice(None), slice(None), *taken)
    windows = windows[picked]
    samples, channels, count = windows.shape[:3]
    split: NDArray[Any] = windows.reshape(samples, groups, channels // groups, count, -1)
    return split.transpose(1, 0, 3, 2, 4).reshape(groups, samples * count, -1)
