"""Activation pruning: which units are hardly active, and their removal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays, PassContext, PassReport
from fleetfit.compress.structure.batches import spread_rows
from fleetfit.compress.structure.groups import Group, analyse
from fleetfit.compress.structure.observe import observe
from fleetfit.compress.structure.removal import remove_units
from fleetfit.core.errors import InvalidData

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfit.compress.passes.activation_pruning import ActivationPruning


def prune_by_activation(model: LayeredModel, settings: ActivationPruning, context: PassContext) -> PassReport:
    """Remove the units of `model` whose mean absolute activation is small; the work of `ActivationPruning`."""
    data = spread_rows(context.training_data("activation_pruning"), settings.samples, context.seed)
    structure = analyse(model)
    planned = structure.planned(settings, settings.layers)
    groups = [group for group, _ in planned]
    scores = mean_activations(
        model, groups, data, lambda done: context.report(0.9 * done, "looking at the activations")
    )
    if settings.scope == "global" and settings.ratio is not None:
        kept = _largest_of_all(scores, settings.ratio)
    else:
        kept = {group.name: _above(scores[group.name], own) for group, own in planned}
    for group, own in planned:
        kept[group.name] = _rounded(scores[group.name], kept[group.name], own.round_to)
    remove_units(model, structure, kept)
    context.report(1.0, "removed what is hardly active")
    notes = [group.narrowed_to(int(kept[group.name].sum())) for group in groups]
    notes += [f"{name} stays whole: {reason}" for name, reason in structure.locked.items() if _worth_telling(reason)]
    return PassReport(notes=notes)


def mean_activations(
    model: LayeredModel, groups: list[Group], data: Arrays, report: Callable[[float], None]
) -> dict[str, torch.Tensor]:
    """For each group's name the mean absolute activation of its units, shape (size,), float64.

    Averaged over samples and places (pixels, time steps), after the nonlinearity where there is one. Where a group can be seen
    at several places, as in a residual stream, over these.

    Raises:
        InvalidData: An activation is not finite.
    """
    wanted = {name for group in groups for name, _ in group.points}
    sums: dict[tuple[str, int], torch.Tensor] = {}
    counts: dict[tuple[str, int], int] = {}
    axes = {name: {axis for group in groups for n, axis in group.points if n == name} for name in wanted}

    def look(name: str, value: torch.Tensor, real: int) -> None:
        for axis in axes[name]:
            # Rows that only fill the batch up do not count; where no batch is in front, all do.
            counted = value[:real] if axis > 0 else value
            rows = counted.detach().abs().to(torch.float64).movedim(axis, 0).flatten(1)
            key = (name, axis)
            sums[key] = sums.get(key, torch.zeros(rows.shape[0], dtype=torch.float64)) + rows.sum(1)
            counts[key] = counts.get(key, 0) + rows.shape[1]

    observe(model, data, wanted, look, report)
    scores: dict[str, torch.Tensor] = {}
    for group in groups:
        seen = []
        for point in group.points:
            outer, inner = group.copies[point]
            mean = sums[point] / max(counts[point], 1)
            # A unit that lies in several copies along the axis: the mean of its copies.
            seen.append(mean.reshape(outer, group.size, inner).mean((0, 2)))
        scores[group.name] = torch.stack(seen).mean(0)
        if not bool(torch.isfinite(scores[group.name]).all()):
            raise InvalidData(
                f"activations of {group.name} are not finite on the training data; look for NaN or huge values"
            )
    return scores


def _above(scores: torch.Tensor, settings: ActivationPruning) -> torch.Tensor:
    """A mask of what one layer keeps."""
    if settings.threshold is not None:
        return scores >= settings.threshold
    return _largest(scores, len(scores), settings.ratio or 0.0)


def _largest(scores: torch.Tensor, size: int, ratio: float) -> torch.Tensor:
    """A mask of the largest ones: `ratio` of them goes, at least one stays; of equals the first stay."""
    count = max(1, size - math.floor(ratio * size))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    return mask


def _largest_of_all(scores: dict[str, torch.Tensor], ratio: float) -> dict[str, torch.Tensor]:
    """Masks over all groups together: each group's scores are divided by their mean first."""
    scaled = {name: values / values.mean().clamp_min(1e-30) for name, values in scores.items()}
    mask = _largest(torch.cat(list(scaled.values())), sum(map(len, scaled.values())), ratio)
    masks, begin = {}, 0
    for name, values in scores.items():
        masks[name] = mask[begin : begin + len(values)]
        begin += len(values)
    return masks


def _rounded(scores: torch.Tensor, mask: torch.Tensor, multiple: int) -> torch.Tensor:
    """At least one unit, and a multiple of `multiple` where there are so many; the largest are added."""
    count = max(1, int(mask.sum()))
    count = min(len(scores), math.ceil(count / multiple) * multiple)
    result = torch.zeros_like(mask)
    # Those chosen come first, then by score.
    order = torch.argsort(scores + mask.to(scores.dtype) * (1.0 + scores.max()), descending=True, stable=True)
    result[order[:count]] = True
    return result


def _worth_telling(reason: str) -> bool:
    return reason != "it is an output of the model"
