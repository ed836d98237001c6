"""A variant's network that its user trained: the same network with other numbers, or refused where it first differs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fleetfit.compress.graph.layered import LayeredModel
from fleetfit.compress.intake.proof import TOLERANCE, largest_difference
from fleetfit.core.errors import InvalidModel

CURE: Final = (
    "train the module that `fleetfit.trainable` gives without changing its layers, export it with `fleetfit.export`, and "
    "push again"
)
_LONGEST: Final = 160
# How fast batch norms learn is the training's affair, and nothing in a network that is used.
_MOMENTUM: Final = re.compile(r"momentum=[^,)]+(, )?")


def take_over(variant: LayeredModel, trained: LayeredModel) -> tuple[int, int]:
    """Give `variant` the numbers of `trained`, which must be the same network; how many of its tensors changed, and of how many.

    Operators, their order and connections, layers, and names, shapes and dtypes of all parameters and buffers must agree,
    so must whole numbers and truth values (indices, masks), which no training changes, and the zeros of the weights in
    `variant.sparse`. What is left of `trained` afterwards are its numbers: names, samples and notes are the variant's.

    Raises:
        InvalidModel: It is another network, its numbers are not finite, or zeros that must stay are gone; the sentence names
            the first place.
    """
    _compare(_ports(variant), _ports(trained))
    _compare(list(_operators(variant.module)), list(_operators(trained.module)))
    mine, theirs = _tensors(variant.module), _tensors(trained.module)
    _compare(_described(mine), _described(theirs))
    _check_numbers(variant, mine, theirs)
    own = list(_once(mine))
    changed = [name for name, tensor in own if not torch.equal(tensor, theirs[name])]
    with torch.no_grad():
        for name in changed:
            mine[name].copy_(theirs[name])
    _prove(variant, trained)
    return len(changed), len(own)


def _ports(model: LayeredModel) -> list[tuple[str, str]]:
    """Inputs and outputs but for the batch, which the file may fix and the variant leave open."""
    return [
        (f"the {word} {at}", f"{tensor.name}, {tensor.dtype} {tensor.shape[1:]}")
        for word, tensors in (("input", model.inputs), ("output", model.outputs))
        for at, tensor in enumerate(tensors, 1)
    ]


def _operators(module: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Every node with where it is, and what it is: nodes are told by their number, since names change with each export."""
    numbers = {node: at for at, node in enumerate(module.graph.nodes)}

    def plain(value: Any) -> str:
        return repr(fx.map_arg(value, lambda node: f"%{numbers[node]}"))

    for node, at in numbers.items():
        where, what = f"operator {at + 1}", f"{node.op} {node.target}"
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            owns = any(True for _ in (*layer.parameters(), *layer.buffers()))
            where = f"the layer {node.target}" if owns else where
            what = f"{node.target if owns else ''} {type(layer).__name__}({_settings(layer)})".strip()
        elif callable(node.target):
            what = str(node.target) if hasattr(node.target, "_schema") else node.target.__name__
        elif node.op == "output":
            what = "output"
        yield where, f"{what} of {plain(node.args)} {plain(node.kwargs) if node.kwargs else ''}".strip()


def _settings(layer: nn.Module) -> str:
    text = layer.extra_repr()
    return _MOMENTUM.sub("", text) if isinstance(layer, _BatchNorm) else text


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under all of their names."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return found | dict(module.named_buffers(remove_duplicate=False))


def _described(tensors: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """What must agree of each: kind, dtype, shape, and the first name that it shares its numbers with."""
    first: dict[int, str] = {}
    found = []
    for name, tensor in sorted(tensors.items()):
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        shared = first.setdefault(id(tensor), name)
        tied = "" if shared == name else f" tied to {shared}"
        dtype = str(tensor.dtype).removeprefix("torch.")
        found.append((f"the weight {name}", f"{name}, {kind} {dtype} {list(tensor.shape)}{tied}"))
    return found


def _compare(mine: list[tuple[str, str]], theirs: list[tuple[str, str]]) -> None:
    for (where, own), (_, other) in zip(mine, theirs, strict=False):
        if own != other:
            raise InvalidModel(
                f"it is not the variant's network: at {_short(where)} the variant has '{_short(own)}' and the file has "
                f"'{_short(other)}'; {CURE}",
                field="model",
            )
    if len(mine) != len(theirs):
        more, longer = ("variant", mine) if len(mine) > len(theirs) else ("file", theirs)
        where, what = longer[min(len(mine), len(theirs))]
        raise InvalidModel(
            f"it is not the variant's network: at {_short(where)} only the {more} has '{_short(what)}'; {CURE}",
            field="model",
        )


def _check_numbers(variant: LayeredModel, mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, tensor in _once(mine):
        new = theirs[name]
        if not tensor.is_floating_point():
            if not torch.equal(tensor, new):
                raise InvalidModel(
                    f"it is not the variant's network: {_short(name)} holds whole numbers or truth values, which training "
                    f"leaves alone, and they differ; {CURE}",
                    field="model",
                )
        elif not bool(torch.isfinite(new).all()) and bool(torch.isfinite(tensor).all()):
            raise InvalidModel(
                f"the weight {_short(name)} holds NaN or infinity, so the training went wrong; train again with a smaller "
                "learning rate",
                field="model",
            )
    for name in sorted(variant.sparse & set(mine)):
        filled = int(((mine[name] == 0) & (theirs[name] != 0)).sum())
        if filled:
            raise InvalidModel(
                f"the weight {_short(name)} has {filled} numbers that pruning made zero and that are not zero any more; "
                f"`fleetfit.trainable` holds them; {CURE}",
                field="model",
            )


def _once(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor under the first of its names."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _prove(variant: LayeredModel, trained: LayeredModel) -> None:
    """What layers do not say of themselves shows in the outputs."""
    # The file's samples where the variant takes their number.
    samples = trained.sample_inputs if variant.dynamic_batch else variant.sample_inputs
    with torch.no_grad():
        ours = list(variant.call(samples).values())
        theirs = list(trained.call(samples).values())
    found = largest_difference(ours, theirs)
    if found > TOLERANCE:
        raise InvalidModel(
            f"it is not the variant's network: with the same numbers its outputs differ by {found:.1e}; {CURE}",
            field="model",
        )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
