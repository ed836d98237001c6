"""Removing the units with the smallest scores: how many, of which layers, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import PassContext
from fleetfit.compress.passes.structured import StructuredPass
from fleetfit.compress.pruning.budget import masks_by_scan, masks_within
from fleetfit.compress.pruning.choice import Scores, largest, largest_of_all, rounded, scaled
from fleetfit.compress.structure.groups import Group, Structure
from fleetfit.compress.structure.removal import remove_units


def cut_the_least(
    model: LayeredModel,
    structure: Structure,
    planned: Sequence[tuple[Group, StructuredPass]],
    scores: Scores,
    settings: StructuredPass,
    context: PassContext,
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
        context: Gives the data of a scan, and where to report.
        comparable: Scores of different groups compare as they are; if not, each is divided by its group's mean first.

    Raises:
        InvalidRecipe: So much cannot be saved.
    """
    notes = []
    kept: Mapping[str, torch.Tensor]
    if settings.budget is not None:
        widths = [(group, own.multiple) for group, own in planned]
        before = model.macs()
        if settings.budget.scan:
            kept = masks_by_scan(model, structure, widths, scores, settings.budget.macs, context)
        else:
            together = scores if comparable else scaled(scores)
            kept = masks_within(model, structure, widths, together, settings.budget.macs)
        remove_units(model, structure, kept)
        after = model.macs()
        notes.append(f"{before} -> {after} multiply-accumulates, {1 - after / before:.1%} fewer")
    else:
        if settings.scope == "global" and settings.ratio is not None:
            chosen = largest_of_all(scores if comparable else scaled(scores), settings.ratio)
        else:
            chosen = {group.name: _own(scores[group.name], own) for group, own in planned}
        kept = {group.name: rounded(scores[group.name], chosen[group.name], own.multiple) for group, own in planned}
        remove_units(model, structure, kept)
        notes += [
            f"{group.name} stays as wide: rounding up to a multiple of {own.multiple} keeps the "
            f"{int((~chosen[group.name]).sum())} that were to go"
            for group, own in planned
            if bool(kept[group.name].all()) and own.multiple > 1 and not bool(chosen[group.name].all())
        ]
    notes += [group.narrowed_to(int(kept[group.name].sum())) for group, _ in planned]
    return notes + [
        f"{name} stays whole: {reason}"
        for name, reason in structure.locked.items()
        if reason != "it is an output of the model"
    ]


def _own(scores: torch.Tensor, settings: StructuredPass) -> torch.Tensor:
    """A mask of what one group keeps by its own settings."""
    threshold: float | None = getattr(settings, "threshold", None)
    return scores >= threshold if threshold is not None else largest(scores, settings.ratio or 0.0)
