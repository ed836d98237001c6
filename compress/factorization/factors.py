"""Ways to split one layer into a short chain: what each rank costs and keeps, and the layers that it gives.

Linear layers and `channel` follow Zhang, Zou, He and Sun ("Accelerating very deep convolutional networks", 2015, without their
step through the activation), `spatial` has the form of Jaderberg, Vedaldi and Zisserman ("Speeding up convolutional neural
networks with low rank expansions", 2014), `tucker2` that of Kim et al. ("Compression of deep convolutional neural networks for
fast and low power mobile applications", 2016). In all of them the error is that of the outputs on real inputs, not of the weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleetfit.compress.factorization.moments import Convolution, Moments, both
from fleetfit.compress.factorization.ranks import Options

# In units of the mean variance of an input: along directions where data hardly vary, the weights themselves are approximated.
_RIDGE: Final = 1e-6

Layer = nn.Linear | Convolution


@dataclass
class Site:
    """A layer that may be split, and how many places of it there are for one sample, summed over its calls."""

    name: str
    layer: Layer
    places: float = 0
    """Of the outputs."""
    places_read: float = 0
    """Of the inputs."""
    places_between: float = 0
    """At the heights of the outputs and the widths of the inputs."""

    def add_call(self, taken: Sequence[int], given: Sequence[int], samples: int) -> None:
        """Count one call, by the shapes of input and output with so many samples."""
        if isinstance(self.layer, nn.Linear):
            self.places += math.prod(given[:-1]) / samples
            self.places_read = self.places_between = self.places
        else:
            self.places += math.prod(given[2:])
            self.places_read += math.prod(taken[2:])
            self.places_between += math.prod(given[2:-1]) * taken[-1]

    @property
    def patch(self) -> int:
        """How many numbers one output value is made from."""
        return self.layer.weight[0].numel()

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the whole layer for one sample."""
        return self.places * self.layer.weight.numel()

    @property
    def parameters(self) -> int:
        """Numbers of the whole layer."""
        return sum(parameter.numel() for parameter in self.layer.parameters())


class Split(ABC):
    """One way to split one layer."""

    method: str

    def __init__(self, site: Site) -> None:
        self.site = site
        self.weight = site.layer.weight.detach().to(torch.float64).flatten(1)
        self.made = len(self.weight)

    @abstractmethod
    def largest(self) -> tuple[int, ...]:
        """The ranks beyond which nothing is gained."""

    @abstractmethod
    def options(self, round_to: int) -> Options:
        """All ranks that are multiples of `round_to` (or the largest), with what they cost and keep."""

    @abstractmethod
    def layers(self, ranks: tuple[int, ...]) -> list[nn.Module]:
        """The chain of layers with these ranks, in the dtype of the layer."""

    def _bias(self) -> torch.Tensor:
        bias = self.site.layer.bias
        return torch.zeros(self.made, dtype=torch.float64) if bias is None else bias.detach().to(torch.float64)


def multiples(largest: int, of: int) -> NDArray[np.int64]:
    """`of`, twice `of`, ... up to the largest, which is always there."""
    return np.minimum(np.arange(of, largest + of, of, dtype=np.int64), largest)


class OutputSplit(Split):
    """Into the leading directions of what the layer makes, and out of them again.

    The best rank-r approximation of W under the covariance C of its inputs, the SVD of W C^(1/2) cut at r, is P W with P the
    projection on the r leading eigenvectors of W C W', the covariance of the outputs. So the outputs are watched, and no root of
    C is taken or inverted. What is cut off is replaced by its mean, which goes into the bias.
    """

    def __init__(self, site: Site, mean: torch.Tensor, covariance: torch.Tensor) -> None:
        """Of the outputs: `mean`, shape (out,), the bias included, and `covariance`, shape (out, out)."""
        super().__init__(site)
        self.method = "linear" if isinstance(site.layer, nn.Linear) else "channel"
        self.mean = mean
        # Where there are more outputs than inputs, they lie in the span of the weights, and rounding must not lead out of it.
        span = torch.linalg.qr(self.weight).Q if self.made > site.patch else None
        inside = covariance if span is None else span.T @ covariance @ span
        values, vectors = torch.linalg.eigh((inside + inside.T) / 2)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        self.vectors = vectors if span is None else span @ vectors
        self.kept = torch.cumsum(values, 0) / values.sum().clamp_min(1e-300)
        # What no rank can lose is kept, whatever rounding says.
        self.kept[self.largest()[0] - 1 :] = 1.0

    @classmethod
    def from_patches(cls, site: Site, patches: Moments) -> OutputSplit:
        """The same, known from the moments of the patches that the layer reads."""
        weight = site.layer.weight.detach().to(torch.float64).flatten(1)
        made = weight @ patches.covariance() @ weight.T
        mean = weight @ patches.mean()
        if site.layer.bias is not None:
            mean = mean + site.layer.bias.detach().to(torch.float64)
        return cls(site, mean, (made + made.T) / 2)

    def largest(self) -> tuple[int, ...]:
        """The smaller side."""
        return (min(self.made, self.site.patch),)

    def options(self, round_to: int) -> Options:
        """One rank each."""
        ranks = multiples(self.largest()[0], round_to)
        numbers = ranks * (self.site.patch + self.made)
        kept: NDArray[np.float64] = self.kept.numpy()[ranks - 1]
        return Options.of(ranks[:, None], self.site.places * numbers, numbers + self.made, kept)

    def layers(self, ranks: tuple[int, ...]) -> list[nn.Module]:
        """Two layers; the first has the geometry of the whole one."""
        basis = self.vectors[:, : ranks[0]]
        # P (W x) + (I - P) m + b, where m = mean - b is the mean of W x.
        bias = self._bias()
        centre = self.mean - bias
        offset = bias + centre - basis @ (basis.T @ centre)
        layer = self.site.layer
        into = basis.T @ self.weight
        if isinstance(layer, nn.Linear):
            return [_linear(layer, into), _linear(layer, basis, offset)]
        shape = (ranks[0], *layer.weight.shape[1:])
        point = (self.made, ranks[0], *(1 for _ in layer.kernel_size))
        first = _convolution(layer, into.reshape(shape), layer.stride, layer.padding, layer.dilation)
        return [first, _convolution(layer, basis.reshape(point), bias=offset)]


class PatchSplit(Split):
    """Into the leading directions of what the layer reads along one axis of its patches, then by least squares to the outputs.

    A patch is a matrix: `left` numbers, which the first factor narrows to r, times `taps`, which the next factor still sees.
    For `tucker2` those are (in channels) x (kernel), for `spatial` (in channels and kernel rows) x (kernel columns). The first
    factor comes from an SVD of the weights, unfolded likewise and weighted on both sides by the mean covariance along each.
    Given it, the rest is linear least squares under the whole covariance of the patches. One Cholesky factor of what the first
    factor gives, in the order of its directions, holds the solutions for all ranks, and tells what each of them keeps.
    """

    def __init__(self, site: Site, method: str, patches: Moments) -> None:
        """`method` is `tucker2`, `spatial` or `linear`; `patches` are the moments of what is read, shape (patch,)."""
        super().__init__(site)
        self.method = method
        kernel = both(site.layer.kernel_size) if not isinstance(site.layer, nn.Linear) else (1, 1)
        self.taps = {"tucker2": kernel[0] * kernel[1], "spatial": kernel[1], "linear": 1}[method]
        self.left = site.patch // self.taps
        self.mean = patches.mean()
        covariance = patches.covariance()
        covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean().clamp_min(1e-30))
        made = self.weight @ covariance @ self.weight.T
        self.total = float(made.trace())
        self.out = torch.linalg.eigh((made + made.T) / 2)[1].flip(1) if method == "tucker2" else None
        self.into = self._directions(covariance.view(self.left, self.taps, self.left, self.taps))
        self._solve(covariance)

    def _directions(self, covariance: torch.Tensor) -> torch.Tensor:
        """The first factor, shape (left, left): a direction in each column, the most telling first."""
        along = torch.einsum("lpmp->lm", covariance)
        across = torch.einsum("lplq->pq", covariance)
        values, vectors = torch.linalg.eigh((along + along.T) / 2)
        roots = values.clamp_min(values[-1] * 1e-12).sqrt()
        weight = self.weight.view(self.made, self.left, self.taps)
        whitened = torch.einsum("lv,olp->vop", vectors * roots, weight)
        gram = (whitened @ across).flatten(1) @ whitened.flatten(1).T
        leading = torch.linalg.eigh((gram + gram.T) / 2)[1].flip(1)
        directions: torch.Tensor = (vectors / roots) @ leading
        return directions

    def _solve(self, covariance: torch.Tensor) -> None:
        """The Cholesky factor of what the first factor gives, and how that goes with what the layer makes."""
        shape = (self.left, self.taps, self.left, self.taps)
        narrowed = torch.einsum("lr,lpmq,ms->rpsq", self.into, covariance.view(shape), self.into)
        narrowed = narrowed.reshape(covariance.shape)
        crossed = torch.einsum("lr,lpo->rpo", self.into, (covariance @ self.weight.T).view(*shape[:2], -1)).flatten(
            0, 1
        )
        if self.out is not None:
            crossed = crossed @ self.out
        self.factor = torch.linalg.cholesky((narrowed + narrowed.T) / 2)
        self.crossed = torch.linalg.solve_triangular(self.factor, crossed, upper=False)

    def largest(self) -> tuple[int, ...]:
        """Of what is read; for `tucker2` also of what is made."""
        if self.method == "tucker2":
            return (min(self.left, self.made * self.taps), min(self.made, self.left * self.taps))
        return (min(self.left, self.made * self.taps),)

    def options(self, round_to: int) -> Options:
        """One rank each, for `tucker2` all pairs."""
        largest = self.largest()
        ranks = multiples(largest[0], round_to)
        explained = self.crossed.square().view(self.left, self.taps, -1).sum(1).cumsum(0)[ranks - 1]
        site, made = self.site, self.made
        if self.method != "tucker2":
            kept = self._share(explained.sum(1))
            first, second = ranks * self.left, ranks * self.taps * made
            macs = site.places_between * first + site.places * second
            return Options.of(ranks[:, None], macs, first + second + made, kept)
        outs = multiples(largest[1], round_to)
        kept = self._share(explained.cumsum(1)[:, outs - 1].flatten())
        pairs = np.stack([grid.ravel() for grid in np.meshgrid(ranks, outs, indexing="ij")], 1)
        first, rest = pairs[:, 0] * self.left, pairs[:, 1] * (pairs[:, 0] * self.taps + made)
        return Options.of(pairs, site.places_read * first + site.places * rest, first + rest + made, kept)

    def _share(self, explained: torch.Tensor) -> NDArray[np.float64]:
        # A layer that gives nothing but its bias loses nothing.
        share = explained / self.total if self.total > 0 else torch.ones_like(explained)
        return np.asarray(share.clamp_max(1).numpy())

    def layers(self, ranks: tuple[int, ...]) -> list[nn.Module]:
        """Two layers, for `tucker2` three."""
        rank = ranks[0]
        into, size = self.into[:, :rank], rank * self.taps
        core = torch.linalg.solve_triangular(self.factor[:size, :size].T, self.crossed[:size], upper=True).T
        basis = None
        if self.out is not None:
            core, basis = core[: ranks[1]], self.out[:, : ranks[1]]
        whole = core if basis is None else basis @ core
        # The mean of what is read, through the whole layer less through the chain.
        narrowed = (into.T @ self.mean.view(self.left, self.taps)).flatten()
        offset = self._bias() + self.weight @ self.mean - whole @ narrowed
        layer = self.site.layer
        if isinstance(layer, nn.Linear):
            return [_linear(layer, into.T), _linear(layer, core, offset)]
        if basis is None:
            return self._columns_then_rows(into, core, offset)
        ones = tuple(1 for _ in layer.kernel_size)
        core = core.reshape(ranks[1], rank, *layer.kernel_size)
        return [
            _convolution(layer, into.T.reshape(rank, -1, *ones)),
            _convolution(layer, core, layer.stride, layer.padding, layer.dilation),
            _convolution(layer, basis.reshape(self.made, -1, *ones), bias=offset),
        ]

    def _columns_then_rows(self, into: torch.Tensor, core: torch.Tensor, offset: torch.Tensor) -> list[nn.Module]:
        layer, rank = self.site.layer, into.shape[1]
        assert isinstance(layer, nn.Conv2d)  # noqa: S101 - for the type checker
        (height, width), stride, padding, dilation = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        up = down = padding
        if not isinstance(padding, str):
            down, up = (padding[0], 0), (0, padding[1])
        return [
            _convolution(layer, into.T.reshape(rank, -1, height, 1), (stride[0], 1), down, (dilation[0], 1)),
            _convolution(layer, core.reshape(self.made, rank, 1, width), (1, stride[1]), up, (1, dilation[1]), offset),
        ]


def _parameter(like: torch.Tensor, value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)


def _linear(like: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = _parameter(like.weight, weight)
    if bias is not None:
        layer.bias = _parameter(like.weight, bias)
    return layer


def _convolution(
    like: Convolution,
    weight: torch.Tensor,
    stride: tuple[int, ...] = (1,),
    padding: str | tuple[int, ...] = (0,),
    dilation: tuple[int, ...] = (1,),
    bias: torch.Tensor | None = None,
) -> Convolution:
    kernel = tuple(weight.shape[2:])

    def full(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return sizes if len(sizes) == len(kernel) else sizes * len(kernel)

    layer = type(like)(
        weight.shape[1],
        weight.shape[0],
        kernel,  # type: ignore[arg-type]
        full(stride),  # type: ignore[arg-type]
        padding if isinstance(padding, str) else full(padding),  # type: ignore[arg-type]
        full(dilation),  # type: ignore[arg-type]
        bias=bias is not None,
        device="meta",
    )
    layer.weight = _parameter(like.weight, weight)
    if bias is not None:
        layer.bias = _parameter(like.weight, bias)
    return layer
