"""Taking units out of a model for good, with every weight that makes, follows or reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.kinds import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from fleetfit.compress.graph.modes import evaluating
from fleetfit.compress.structure.groups import Group, Structure
from fleetfit.compress.structure.spaces import Space, kept_elements, resolved, spaces_of
from fleetfit.core.errors import InternalError, InvalidRecipe


def remove_units(model: LayeredModel, structure: Structure, kept: Mapping[str, torch.Tensor]) -> None:
    """Remove units from `model`, in place.

    Afterwards the outputs are compared with those of the model before, whose removed units were only no longer read: they
    must be the same, so nothing but those units went.

    Args:
        model: The model that `structure` was found in.
        structure: From `analyse(model)`; it no longer fits afterwards.
        kept: For each group's name, a mask of shape (size,): True stays. Groups that are left out stay whole.

    Raises:
        InvalidRecipe: A group would be left without units.
        InternalError: The outputs changed by more than they should.
    """
    masks: dict[Space, torch.Tensor] = {}
    for group in structure.groups:
        mask = kept.get(group.name)
        if mask is None or bool(mask.all()):
            continue
        _check_mask(group, mask)
        masks[group.space.root()] = mask
    if not masks:
        return
    expected = _unread(model, structure, masks)
    for cut in structure.cuts:
        if any(space.root() in masks for space in spaces_of(resolved(cut.layout))):
            leaf, elements = model.module.get_submodule(cut.module), kept_elements(cut.layout, masks)
            _select(leaf, cut.tensor, cut.axis, elements)
            if cut.tensor == "running_mean":
                earlier = model.kept.get(cut.module)
                model.kept[cut.module] = elements if earlier is None else earlier[elements]
    for count in structure.counts:
        leaf = model.module.get_submodule(count.module)
        setattr(leaf, count.attribute, len(kept_elements(count.layout, masks)))
    for name in {cut.module for cut in structure.cuts}:
        _refit(model.module.get_submodule(name))
    _resize(model, structure, masks)
    _compare(model, expected)


def _check_mask(group: Group, mask: torch.Tensor) -> None:
    if mask.dtype != torch.bool or tuple(mask.shape) != (group.size,):
        raise InternalError(f"the mask for {group.name} must have {group.size} truth values")
    if not bool(mask.any()):
        raise InvalidRecipe(f"no unit of {group.name} would be left; prune it less")


def _select(leaf: nn.Module, name: str, axis: int, elements: torch.Tensor) -> None:
    tensor = getattr(leaf, name)
    smaller = tensor.detach().index_select(axis, elements).contiguous()
    if isinstance(tensor, nn.Parameter):
        setattr(leaf, name, nn.Parameter(smaller, requires_grad=tensor.requires_grad))
    else:
        setattr(leaf, name, smaller)


def _resize(model: LayeredModel, structure: Structure, masks: Mapping[Space, torch.Tensor]) -> None:
    """Make the sizes that the graph holds by number agree with what is left."""
    nodes = {node.name: node for node in model.module.graph.nodes}
    for extent in structure.extents:
        node, count = nodes[extent.node], len(kept_elements(extent.layout, masks))
        first, *rest = extent.path
        if rest:
            sizes = list(node.args[first])
            sizes[rest[0]] = count
            node.update_arg(first, sizes)
        else:
            node.update_arg(first, count)
    model.module.recompile()


def _refit(leaf: nn.Module) -> None:
    """Make a layer's own account of its sizes agree with its weights."""
    if isinstance(leaf, CONVOLUTIONS):
        leaf.out_channels, leaf.in_channels = leaf.weight.shape[0], leaf.weight.shape[1] * leaf.groups
    elif isinstance(leaf, TRANSPOSED):
        leaf.in_channels, leaf.out_channels = leaf.weight.shape[0], leaf.weight.shape[1] * leaf.groups
    elif isinstance(leaf, nn.Linear):
        leaf.out_features, leaf.in_features = leaf.weight.shape
    elif isinstance(leaf, BATCH_NORMS):
        if leaf.running_mean is not None:
            leaf.num_features = leaf.running_mean.shape[0]
    elif isinstance(leaf, nn.PReLU):
        leaf.num_parameters = leaf.weight.shape[0]
    elif isinstance(leaf, nn.Embedding):
        leaf.embedding_dim = leaf.weight.shape[1]


def outputs_of(model: LayeredModel) -> dict[str, torch.Tensor]:
    """The outputs for the sample inputs, in evaluation mode, without gradients."""
    with evaluating(model), torch.no_grad():
        return model.call(model.sample_inputs)


def _unread(model: LayeredModel, structure: Structure, masks: Mapping[Space, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs when all weights that read the units to be removed are zero."""
    silent = model.clone()
    with torch.no_grad():
        for cut in structure.cuts:
            if not cut.reads:
                continue
            tensor = getattr(silent.module.get_submodule(cut.module), cut.tensor)
            gone = torch.ones(tensor.shape[cut.axis], dtype=torch.bool)
            gone[kept_elements(cut.layout, masks)] = False
            tensor.index_fill_(cut.axis, gone.nonzero().flatten(), 0)
    return outputs_of(silent)


def _compare(model: LayeredModel, expected: Mapping[str, torch.Tensor]) -> None:
    for name, value in outputs_of(model).items():
        wanted = expected[name]
        if value.shape != wanted.shape:
            raise InternalError(f"pruning changed the shape of the output {name}; this is a bug, please report it")
        if not value.is_floating_point():
            continue
        if not torch.allclose(
            value, wanted, rtol=1e-3, atol=1e-4 * max(1.0, float(wanted.abs().max())), equal_nan=True
        ):
            raise InternalError(f"pruning changed more than it should in the output {name}; this is a bug, report it")
