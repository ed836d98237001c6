"""Which units stay, once every unit has a score: greater is more important."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

Scores = Mapping[str, torch.Tensor]
"""For each group's name a score of each of its units: shape (size,), float64, not negative."""


def largest(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """A mask of the largest ones: `ratio` of them goes, at least one stays; of equals the first stay."""
    return best(scores, max(1, len(scores) - math.floor(ratio * len(scores))))


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the `count` largest ones; of equals the first stay."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    return mask


def largest_of_all(scores: Scores, ratio: float) -> dict[str, torch.Tensor]:
    """Masks over all groups together."""
    mask = largest(torch.cat(list(scores.values())), ratio)
    return dict(zip(scores, torch.split(mask, [len(values) for values in scores.values()]), strict=True))


def scaled(scores: Scores) -> dict[str, torch.Tensor]:
    """Each group's scores over their mean."""
    return {name: values / values.mean().clamp_min(1e-30) for name, values in scores.items()}


def rounded(scores: torch.Tensor, mask: torch.Tensor, multiple: int) -> torch.Tensor:
    """At least one unit, and a multiple of `multiple` where there are so many; the largest are added."""
    count = max(1, int(mask.sum()))
    count = min(len(scores), math.ceil(count / multiple) * multiple)
    result = torch.zeros_like(mask)
    # Those chosen come first, then by score.
    order = torch.argsort(scores + mask.to(scores.dtype) * (1.0 + scores.max()), descending=True, stable=True)
    result[order[:count]] = True
    return result
