"""Activation pruning: which units are hardly active, and their removal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import spread_rows
from fleetfit.compress.graph.observe import observe
from fleetfit.compress.passes.base import Arrays, PassContext, PassReport
from fleetfit.compress.pruning.cutting import cut_the_least
from fleetfit.compress.structure.groups import Group, analyse
from fleetfit.core.errors import InvalidData, InvalidRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfit.compress.passes.activation_pruning import ActivationPruning


def prune_by_activation(model: LayeredModel, settings: ActivationPruning, context: PassContext) -> PassReport:
    """Remove the units of `model` whose mean absolute activation is small; the work of `ActivationPruning`."""
    data = spread_rows(context.training_data("activation_pruning"), settings.samples, context.seed)
    structure = analyse(model)
    planned = structure.planned(settings, settings.layers)
    by_zeros = settings.criterion == "zeros"
    scores = mean_activations(
        model,
        [group for group, _ in planned],
        data,
        lambda done: context.report(0.9 * done, "looking at the activations"),
        not_zero if by_zeros else torch.abs,
    )
    never = [group.name for group, _ in planned if by_zeros and bool((scores[group.name] == 1).all())]
    planned = [(group, own) for group, own in planned if group.name not in never]
    if not planned:
        raise InvalidRecipe(
            f"activation_pruning finds no activation that is ever zero in {', '.join(never[:3])}; use the criterion "
            "mean_absolute, or taylor_pruning"
        )
    scores = {group.name: scores[group.name] for group, _ in planned}
    notes = cut_the_least(model, structure, planned, scores, settings, context)
    notes += [f"{name} stays whole: its activations are never zero" for name in never]
    context.report(1.0, "removed what is hardly active")
    return PassReport(notes=notes)


def not_zero(value: torch.Tensor) -> torch.Tensor:
    """One where an activation is not zero: its mean is 1 - APoZ, the average percentage of zeros.

    (Hu, Peng, Tai and Tang, "Network trimming: a data-driven neuron pruning approach", 2016.)
    """
    # What is not finite stays so, to be found.
    return torch.where(torch.isfinite(value), (value != 0).to(torch.float64), value.to(torch.float64))


def mean_activations(
    model: LayeredModel,
    groups: list[Group],
    data: Arrays,
    report: Callable[[float], None],
    measure: Callable[[torch.Tensor], torch.Tensor] = torch.abs,
) -> dict[str, torch.Tensor]:
    """For each group's name the mean absolute activation of its units, or that of another `measure`: shape (size,), float64.

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
            rows = measure(counted.detach()).to(torch.float64).movedim(axis, 0).flatten(1)
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
