"""Which units stay, once every unit has a score: greater is more important."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.structure.groups import Group, Structure
from fleetfit.compress.structure.removal import remove_units

Scores = Mapping[str, torch.Tensor]
"""For each group's name a score of each of its units: shape (size,), float64, not negative."""


class Amount(Protocol):
    """What a pass that removes units by score says of how many are to go."""

    @property
    def ratio(self) -> float | None:
        """The share of the units that goes."""

    @property
    def scope(self) -> str:
        """`layer` or `global`."""

    @property
    def round_to(self) -> int:
        """Widths that remain are multiples of this."""


def cut_the_least(
    model: LayeredModel,
    structure: Structure,
    planned: Sequence[tuple[Group, Amount]],
    scores: Scores,
    settings: Amount,
    *,
    comparable: bool = False,
) -> list[str]:
    """Remove the units with the smallest scores, and say what is left of each group, and what stays whole and why.

    Args:
        model: The model that `structure` was found in; changed in place.
        structure: From `analyse(model)`.
        planned: The groups that may be cut, each with its own settings.
        scores: Of the units of these groups.
        settings: Those of the pass as a whole.
        comparable: Scores of different groups compare as they are; if not, each is divided by its group's mean first.
    """
    if settings.scope == "global" and settings.ratio is not None:
        kept = largest_of_all(scores if comparable else scaled(scores), settings.ratio)
    else:
        kept = {group.name: _own(scores[group.name], own) for group, own in planned}
    for group, own in planned:
        kept[group.name] = rounded(scores[group.name], kept[group.name], own.round_to)
    remove_units(model, structure, kept)
    notes = [group.narrowed_to(int(kept[group.name].sum())) for group, _ in planned]
    return notes + [
        f"{name} stays whole: {reason}"
        for name, reason in structure.locked.items()
        if reason != "it is an output of the model"
    ]


def _own(scores: torch.Tensor, settings: Any) -> torch.Tensor:
    """A mask of what one group keeps by its own settings."""
    threshold = getattr(settings, "threshold", None)
    return scores >= threshold if threshold is not None else largest(scores, settings.ratio or 0.0)


def largest(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """A mask of the largest ones: `ratio` of them goes, at least one stays; of equals the first stay."""
    count = max(1, len(scores) - math.floor(ratio * len(scores)))
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
