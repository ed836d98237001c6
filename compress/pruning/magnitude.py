"""Zero pruning: which weights, or which units' weights, are near zero, and their removal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.kinds import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from fleetfit.compress.passes.base import PassContext, PassReport
from fleetfit.compress.pruning.cutting import cut_the_least
from fleetfit.compress.pruning.zeros import keep_of_every, keep_share, lamp, magnitudes
from fleetfit.compress.structure.groups import Group, Structure, analyse
from fleetfit.compress.structure.spaces import unit_elements
from fleetfit.compress.structure.walk import shared_modules
from fleetfit.core.errors import InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.zero_pruning import ZeroPruning

_MAKERS: Final = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding, nn.LSTM, nn.GRU)


def prune_by_magnitude(model: LayeredModel, settings: ZeroPruning, context: PassContext) -> PassReport:
    """Remove the units, or set to zero the weights, of `model` that are small; the work of `ZeroPruning`."""
    if settings.pattern == "channels":
        structure = analyse(model)
        planned = structure.planned(settings, settings.layers)
        scores = unit_norms(model, structure, [group for group, _ in planned])
        notes = cut_the_least(model, structure, planned, scores, settings, context)
    else:
        notes = _set_to_zero(model, settings)
    context.report(1.0, "removed what is near zero")
    return PassReport(notes=notes)


def unit_norms(model: LayeredModel, structure: Structure, groups: Sequence[Group]) -> dict[str, torch.Tensor]:
    """For each group's name the L2 norm of the weights that make each unit, shape (size,), float64.

    Over all layers whose units are coupled (as in a residual stream, or a depthwise convolution behind another one), and as
    these weights are once the batch norm that follows is folded into them: before it their size means nothing. Biases do not
    count. (Norms of coupled weights together: Fang et al., "DepGraph: towards any structural pruning", 2023.)
    """
    squares = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    # A layer that is used twice is met twice.
    for cut in dict.fromkeys(cut for cut in structure.cuts if not cut.reads and cut.tensor.startswith("weight")):
        leaf = model.module.get_submodule(cut.module)
        if not isinstance(leaf, _MAKERS):
            continue
        rows = magnitudes(getattr(leaf, cut.tensor)).movedim(cut.axis, 0).flatten(1).square().sum(1)
        rows = rows * _scale(model.module, cut.module, len(rows)).square()
        for group in groups:
            if any(one.space is not None and one.space.root() is group.space.root() for one in cut.layout):
                squares[group.name] += rows[unit_elements(cut.layout, group.space)].sum(0)
    return {name: values.sqrt() for name, values in squares.items()}


def _scale(module: fx.GraphModule, name: str, size: int) -> torch.Tensor:
    """By what the batch norm behind a layer multiplies each of its outputs; ones where none follows alone."""
    plain = torch.ones(size, dtype=torch.float64)
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target == name:
            users = list(node.users)
            if len(users) != 1 or users[0].op != "call_module":
                return plain
            norm = module.get_submodule(str(users[0].target))
            if not isinstance(norm, BATCH_NORMS) or norm.running_var is None or len(norm.running_var) != size:
                return plain
            scale = (norm.running_var.detach().to(torch.float64) + norm.eps).rsqrt()
            return scale if norm.weight is None else scale * norm.weight.detach().to(torch.float64).abs()
    return plain


def _set_to_zero(model: LayeredModel, settings: ZeroPruning) -> list[str]:
    weights, notes = _weights(model, settings.layers)
    settings.check_patterns(weights)
    chosen = {name: own for name in weights if (own := settings.for_layer(name)) is not None}
    masks: dict[str, torch.Tensor] = {}
    if settings.pattern == "unstructured" and settings.scope == "global":
        scores = {name: lamp(weights[name]) for name in chosen}
        if scores:
            together = keep_share(torch.cat([values.flatten() for values in scores.values()]), settings.ratio or 0.0)
            parts = torch.split(together, [values.numel() for values in scores.values()])
            masks = {name: part.reshape(weights[name].shape) for name, part in zip(scores, parts, strict=True)}
    else:
        for name, own in chosen.items():
            if own.pattern == "unstructured":
                masks[name] = keep_share(magnitudes(weights[name]), own.ratio or 0.0)
                continue
            keep, every = own.of_every()
            axis = 0 if isinstance(model.module.get_submodule(name), TRANSPOSED) else 1
            if weights[name].shape[axis] % every:
                notes.append(f"{name} stays whole: its {weights[name].shape[axis]} inputs are no multiple of {every}")
            else:
                masks[name] = keep_of_every(magnitudes(weights[name]), axis, keep, every)
    if not masks:
        reasons = "; ".join(notes[:3])
        raise InvalidRecipe(
            f"zero_pruning finds no {'' if settings.layers == 'all' else settings.layers + ' '}layer for the pattern "
            f"{settings.pattern}{f' ({reasons})' if reasons else ''}; leave the step out, or choose another pattern"
        )
    for name, mask in masks.items():
        with torch.no_grad():
            weights[name].masked_fill_(~mask, 0)
        model.sparse.add(f"{name}.weight")
    return [*_told(masks, weights), *notes]


def _weights(model: LayeredModel, layers: str) -> tuple[dict[str, nn.Parameter], list[str]]:
    """The weights of linear layers and convolutions by the layer's name, and notes on those to be left alone."""
    kinds = {"linear": (nn.Linear,), "convolution": (*CONVOLUTIONS, *TRANSPOSED)}
    wanted = sum(kinds.values(), ()) if layers == "all" else kinds[layers]
    shared = shared_modules(model.module)
    found: dict[str, nn.Parameter] = {}
    notes = []
    for name in dict.fromkeys(str(node.target) for node in model.module.graph.nodes if node.op == "call_module"):
        leaf = model.module.get_submodule(name)
        if not isinstance(leaf, wanted):
            continue
        if name in shared:
            notes.append(f"{name} stays whole: it shares a weight with another layer")
        elif leaf.weight.is_floating_point():
            found[name] = cast(nn.Parameter, leaf.weight)
    return found, notes


def _told(masks: dict[str, torch.Tensor], weights: dict[str, nn.Parameter]) -> list[str]:
    zeros = {name: int((weights[name] == 0).sum()) for name in masks}
    total = sum(weights[name].numel() for name in masks)
    return [
        f"{sum(zeros.values())} of the {total} weights of {len(masks)} layers are zero "
        f"({sum(zeros.values()) / total:.1%}), and stay so in later training",
        "zeros change neither the size of the file nor the latency on ordinary runtimes, which compute with them all the same",
        *(
            f"{name}: {count / weights[name].numel():.1%} of {weights[name].numel()} are zero"
            for name, count in zeros.items()
        ),
    ]
