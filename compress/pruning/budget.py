"""Which units go so that a model has only so many multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import outputs_over, spread_rows
from fleetfit.compress.graph.kinds import CONVOLUTIONS, TRANSPOSED
from fleetfit.compress.passes.base import PassContext
from fleetfit.compress.pruning.choice import Scores, best, rounded
from fleetfit.compress.structure.groups import Group, Structure
from fleetfit.compress.structure.removal import remove_units
from fleetfit.compress.structure.spaces import Layout, Space, product
from fleetfit.compress.structure.walk import shapes_of
from fleetfit.compress.training.losses import DistillationLoss
from fleetfit.core.errors import InvalidRecipe

Widths = Sequence[tuple[Group, int]]
"""Groups that may be cut, each with the number of which its width shall be a multiple."""

# A scan tries so many widths of each layer, on so many samples.
_STEPS: Final = 8
_SCAN_SAMPLES: Final = 256


class Macs:
    """The multiply-accumulates of a model as a function of its groups' widths, without cutting it.

    What is no layer (the products of attention) counts as if it stayed whole, so that no more are left than this says.
    """

    def __init__(self, model: LayeredModel, structure: Structure) -> None:
        shapes = shapes_of(model)
        layouts: dict[str, dict[str, dict[int, Layout]]] = {}
        for cut in structure.cuts:
            if cut.tensor.startswith("weight"):
                layouts.setdefault(cut.module, {}).setdefault(cut.tensor, {})[cut.axis] = cut.layout
        # Each term: what a layer costs, and the axes of its weight that become shorter.
        self._terms: list[tuple[float, list[Layout]]] = []
        for node in model.module.graph.nodes:
            if node.op != "call_module" or str(node.target) not in layouts:
                continue
            leaf = model.module.get_submodule(str(node.target))
            for tensor, axes in layouts[str(node.target)].items():
                weight = getattr(leaf, tensor)
                if isinstance(leaf, (*CONVOLUTIONS, nn.Linear)):
                    cost = product(shapes[node]) * weight[0].numel()
                elif isinstance(leaf, TRANSPOSED):
                    cost = product(shapes[node.args[0]]) * weight[0].numel()
                elif isinstance(leaf, (nn.LSTM, nn.GRU)):
                    cost = product(shapes[node.args[0]][:-1]) * weight.numel()
                else:
                    continue
                self._terms.append((cost / model.sample_batch(), list(axes.values())))
        self.whole = float(model.macs())
        self._rest = self.whole - sum(cost for cost, _ in self._terms)

    def of(self, widths: Mapping[Space, int]) -> float:
        """With so many units left of the groups with these roots; all others stay whole."""
        return self._rest + sum(
            cost * math.prod(_left(layout, widths) for layout in layouts) for cost, layouts in self._terms
        )


def _left(layout: Layout, widths: Mapping[Space, int]) -> float:
    """The share of an axis that is left."""
    left = 0
    for segment in layout:
        width = widths.get(segment.space.root()) if segment.space is not None else None
        left += segment.elements() if width is None else segment.outer * width * segment.inner
    return left / sum(segment.elements() for segment in layout)


def masks_within(
    model: LayeredModel, structure: Structure, groups: Widths, scores: Scores, share: float
) -> dict[str, torch.Tensor]:
    """Masks of what stays when the units with the smallest scores go, until `share` of the MACs is gone.

    Args:
        model: Is not changed. `structure` was found in it.
        structure: From `analyse(model)`.
        groups: The groups that may be cut.
        scores: Of their units; those of different groups are compared.
        share: 0 to 1.

    Raises:
        InvalidRecipe: So much cannot go.
    """
    macs = Macs(model, structure)
    every = torch.cat([scores[group.name] for group, _ in groups])
    # Of equals the first stay.
    order = torch.argsort(every, descending=True, stable=True).flip(0)

    def masks(count: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(len(every), dtype=torch.bool)
        mask[order[:count]] = False
        parts = torch.split(mask, [group.size for group, _ in groups])
        return {
            group.name: rounded(scores[group.name], part, multiple)
            for (group, multiple), part in zip(groups, parts, strict=True)
        }

    def cost(count: int) -> float:
        kept = masks(count)
        return macs.of({group.space.root(): int(kept[group.name].sum()) for group, _ in groups})

    _check_reach(macs, cost(len(every)), share)
    low, high = 0, len(every)
    # The more units go, the fewer MACs are left: the least number that is enough.
    while low < high:
        middle = (low + high) // 2
        if cost(middle) <= (1 - share) * macs.whole:
            high = middle
        else:
            low = middle + 1
    return masks(low)


def masks_by_scan(
    model: LayeredModel, structure: Structure, groups: Widths, scores: Scores, share: float, context: PassContext
) -> dict[str, torch.Tensor]:
    """Masks of what stays when layers are cut by how little that does to the outputs, until `share` of the MACs is gone.

    Each group alone is cut to several widths, the smallest scores first, and the outputs are compared with those of the model
    as it is (divergence of logits, else squared difference over the variance). Then, again and again, that cut is chosen which
    does the least damage per MAC saved, as if damages added up; and cuts that turn out not to be needed are taken back.

    Args:
        model: Is not changed. `structure` was found in it.
        structure: From `analyse(model)`.
        groups: The groups that may be cut.
        scores: Of their units; only those of one group are compared.
        share: 0 to 1.
        context: Gives the data: the validation split where there is one, else the training split.

    Raises:
        InvalidRecipe: So much cannot go, or there are no data.
    """
    macs = Macs(model, structure)
    levels = [_levels(group.size, multiple) for group, multiple in groups]
    roots = [group.space.root() for group, _ in groups]

    def cost(at: Sequence[int]) -> float:
        return macs.of({root: widths[level] for root, widths, level in zip(roots, levels, at, strict=True)})

    _check_reach(macs, cost([len(widths) - 1 for widths in levels]), share)
    damages = _damages(model, structure, groups, levels, scores, context)
    at = _allot(cost, damages, (1 - share) * macs.whole)
    return {
        group.name: best(scores[group.name], widths[level])
        for (group, _), widths, level in zip(groups, levels, at, strict=True)
    }


def _check_reach(macs: Macs, least: float, share: float) -> None:
    if least > (1 - share) * macs.whole:
        raise InvalidRecipe(
            f"with every layer at its least width {1 - least / macs.whole:.0%} of the MACs go, not {share:.0%}; ask for "
            "less, give a smaller round_to or skip fewer layers"
        )


def _levels(size: int, multiple: int) -> list[int]:
    """Widths to try, the whole one first."""
    wanted = [max(1, math.ceil(size * (_STEPS - step) / _STEPS)) for step in range(_STEPS)]
    least = 1 if multiple == 1 else min(size, multiple)
    return sorted({min(size, math.ceil(width / multiple) * multiple) for width in (*wanted, least)}, reverse=True)


def _damages(
    model: LayeredModel,
    structure: Structure,
    groups: Widths,
    levels: Sequence[Sequence[int]],
    scores: Scores,
    context: PassContext,
) -> list[list[float]]:
    """For each group and each of its widths by how much the outputs differ; never less for a smaller width."""
    data = context.validation if context.validation is not None else context.training_data("a scan of the layers")
    data = spread_rows(data, _SCAN_SAMPLES, context.seed)
    whole = outputs_over(model, data)
    loss = DistillationLoss.for_outputs(whole, None, task=context.task, temperature=1.0, label_weight=0.0)
    found = []
    for number, ((group, _), widths) in enumerate(zip(groups, levels, strict=True)):
        damage = [0.0]
        for width in widths[1:]:
            cut = model.clone()
            remove_units(cut, structure, {group.name: best(scores[group.name], width)})
            damage.append(max(damage[-1], float(loss(outputs_over(cut, data), whole, None))))
        found.append(damage)
        context.report(0.9 + 0.09 * (number + 1) / len(groups), "looking at what each layer alone does")
    return found


def _allot(cost: Callable[[Sequence[int]], float], damages: Sequence[Sequence[float]], most: float) -> list[int]:
    """The level of each group so that no more than `most` is left, with little damage in all."""
    at = [0] * len(damages)
    now = cost(at)
    while now > most:
        best: tuple[float, int, int] | None = None
        for group, damage in enumerate(damages):
            for level in range(at[group] + 1, len(damage)):
                saved = now - cost([*at[:group], level, *at[group + 1 :]])
                if saved > 0:
                    price = (damage[level] - damage[at[group]]) / saved
                    if best is None or (price, group, level) < best:
                        best = (price, group, level)
        if best is None:
            break
        at[best[1]] = best[2]
        now = cost(at)
    # The last cut may have saved more than was asked: what costs most and is not needed is taken back.
    for group in sorted(range(len(damages)), key=lambda one: -damages[one][at[one]]):
        while at[group] > 0 and cost([*at[:group], at[group] - 1, *at[group + 1 :]]) <= most:
            at[group] -= 1
    return at
