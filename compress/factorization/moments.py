"""Means and covariances of what layers make, and of the patches that convolutions read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import fx, nn
from torch.nn import functional

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.observe import Look, observe
from fleetfit.compress.passes.base import Arrays
from fleetfit.core.errors import InvalidData

# Places of one picture are much alike: so many patches are enough, or so many times their size.
_ROWS: Final = 1 << 15
_ROWS_PER_VALUE: Final = 4
_ELEMENTS_AT_ONCE: Final = 1 << 24

Convolution = nn.Conv1d | nn.Conv2d


@dataclass
class Moments:
    """First and second moments of rows of numbers, gathered in float64."""

    count: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def add(self, rows: torch.Tensor) -> None:
        """Take in rows, shape (count, size)."""
        rows = rows.to(torch.float64)
        if self.count == 0:
            self.sums = torch.zeros(rows.shape[1], dtype=torch.float64)
            self.squares = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        self.sums += rows.sum(0)
        self.squares += rows.T @ rows
        self.count += len(rows)

    def mean(self) -> torch.Tensor:
        """Shape (size,), float64."""
        return self.sums / self.count

    def covariance(self) -> torch.Tensor:
        """Shape (size, size), float64, symmetric."""
        mean = self.mean()
        covariance = self.squares / self.count - torch.outer(mean, mean)
        return (covariance + covariance.T) / 2


def moments_of(
    model: LayeredModel,
    outputs: Mapping[str, nn.Module],
    inputs: Mapping[str, nn.Module],
    data: Arrays,
    report: Callable[[float], None],
) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """Moments of what some layers make, and of the patches that others read; those that no data reach are left out.

    A patch is what one output value is made from: shape (in channels * kernel,), padded zeros included, in the order of the
    flattened weight. For a linear layer it is one row of its input.

    Args:
        model: Is not changed.
        outputs: Layers by name whose outputs to look at, channels as columns.
        inputs: Layers by name whose patches to look at.
        data: The samples.
        report: Called with the fraction done.

    Raises:
        InvalidData: A moment is not finite.
    """
    made: dict[str, Moments] = {}
    read: dict[str, Moments] = {}
    looks: dict[str, list[Look]] = {}
    for node in model.module.graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        if name in outputs:
            looks.setdefault(node.name, []).append(_look_at_outputs(name, outputs[name], made, len(data)))
        if name in inputs and isinstance(node.args[0], fx.Node):
            looks.setdefault(node.args[0].name, []).append(_look_at_patches(name, inputs[name], read, len(data)))

    def look(node: str, value: torch.Tensor, real: int) -> None:
        for one in looks[node]:
            one(node, value, real)

    observe(model, data, looks, look, report)
    for kind, found in (("outputs of", made), ("inputs of", read)):
        for name, moments in found.items():
            if not bool(torch.isfinite(moments.squares).all()):
                raise InvalidData(f"{kind} {name} are not finite on the training data; look for NaN or huge values")
    return made, read


def _look_at_outputs(name: str, layer: nn.Module, found: dict[str, Moments], samples: int) -> Look:
    def look(node: str, value: torch.Tensor, real: int) -> None:
        if isinstance(layer, nn.Linear):
            rows = value[:real].reshape(-1, value.shape[-1])
        else:
            rows = value[:real].movedim(1, -1).flatten(0, -2)
            rows = rows[:: _stride(len(rows), value.shape[1], real / samples)]
        found.setdefault(name, Moments()).add(rows)

    return look


def _look_at_patches(name: str, layer: nn.Module, found: dict[str, Moments], samples: int) -> Look:
    def look(node: str, value: torch.Tensor, real: int) -> None:
        moments = found.setdefault(name, Moments())
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            _add_patches(moments, value[:real], layer, real / samples)
        else:
            moments.add(value[:real].reshape(-1, value.shape[-1]))

    return look


def _stride(rows: int, width: int, share: float) -> int:
    """The step between the rows to take of a batch that has this share of all samples.

    It is odd, so that it does not keep falling into the same columns of a picture.
    """
    wanted = max(_ROWS, _ROWS_PER_VALUE * width) * share
    return max(1, int(rows / wanted) | 1) if rows > wanted else 1


def _add_patches(moments: Moments, value: torch.Tensor, layer: Convolution, share: float) -> None:
    kernel, stride, dilation = both(layer.kernel_size), both(layer.stride), both(layer.dilation)
    if isinstance(layer, nn.Conv1d):
        value = value.unsqueeze(2)
    value = functional.pad(value, _padding(layer))
    height, width = (
        (size - reach * (taps - 1) - 1) // step + 1
        for size, reach, taps, step in zip(value.shape[2:], dilation, kernel, stride, strict=True)
    )
    size = value.shape[1] * kernel[0] * kernel[1]
    every = _stride(len(value) * height * width, size, share)
    places = torch.arange(0, len(value) * height * width, every)
    for part in torch.split(places, max(1, _ELEMENTS_AT_ONCE // size)):
        sample, y, x = part // (height * width), part // width % height, part % width
        taps = [
            value[sample, :, y * stride[0] + i * dilation[0], x * stride[1] + j * dilation[1]]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]
        moments.add(torch.stack(taps, 2).flatten(1))


def both(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Sizes along height and width; a signal has height one."""
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _padding(layer: Convolution) -> tuple[int, ...]:
    """Zeros on the left, right, top and bottom."""
    if isinstance(layer.padding, str):
        reaches = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sides = [(reach // 2, reach - reach // 2) if layer.padding == "same" else (0, 0) for reach in reaches]
    else:
        sides = [(size, size) for size in layer.padding]
    padded = tuple(side for pair in reversed(sides) for side in pair)
    return padded if len(sides) == 2 else (*padded, 0, 0)
