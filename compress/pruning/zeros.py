"""Weights that are set to zero one by one: which, and that they stay so while the model is trained."""

from __future__ import annotations

import torch

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.pruning.choice import largest


class KeptZeros:
    """The zeros of the weights named in `model.sparse`, as they are now. Whatever trains restores them after every step."""

    def __init__(self, model: LayeredModel) -> None:
        # A weight that was taken apart since has no zeros to keep.
        self._zeros = [
            (parameter, parameter.detach() == 0)
            for name, parameter in model.module.named_parameters(remove_duplicate=False)
            if name in model.sparse
        ]

    def restore(self) -> None:
        """Make zero again what was zero."""
        with torch.no_grad():
            for parameter, zero in self._zeros:
                parameter.masked_fill_(zero, 0)


def magnitudes(weight: torch.Tensor) -> torch.Tensor:
    """Absolute values, float64, of the same shape."""
    return weight.detach().abs().to(torch.float64)


def lamp(weight: torch.Tensor) -> torch.Tensor:
    """Magnitudes that can be compared between layers: each square over the sum of the squares that are not smaller.

    The largest of a layer has 1, so a layer loses its last weight only when nothing else is left. Shape as `weight`, float64.
    (LAMP: Lee, Park, Mo, Ahn and Shin, "Layer-adaptive sparsity for the magnitude-based pruning", 2021.)
    """
    squares = magnitudes(weight).flatten().square()
    order = torch.argsort(squares, stable=True)
    sums = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = squares[order] / sums.clamp_min(1e-300)
    return scores.reshape(weight.shape)


def keep_share(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """A mask, shaped as `scores`, without `ratio` of those that are not zero yet: the smallest go, of equals the last.

    What is zero already does not count, so that to cut a fifth again and again leaves 0.8, 0.64, 0.51 of all.
    """
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    alive = (scores.flatten() > 0).nonzero().flatten()
    if len(alive):
        mask[alive] = largest(scores.flatten()[alive], ratio)
    return mask.reshape(scores.shape)


def keep_of_every(scores: torch.Tensor, axis: int, keep: int, every: int) -> torch.Tensor:
    """A mask, shaped as `scores`, of the `keep` largest of every `every` neighbours along an axis.

    Its length must be a multiple of `every`. (N:M sparsity: Zhou et al., "Learning N:M fine-grained structured sparse neural
    networks from scratch", 2021.)
    """
    rows = scores.movedim(axis, -1)
    blocks = rows.reshape(*rows.shape[:-1], -1, every)
    order = torch.argsort(blocks, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[..., :keep], True)
    return mask.reshape(rows.shape).movedim(-1, axis)
