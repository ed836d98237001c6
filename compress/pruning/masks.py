"""Zeros held by the module itself, for training in code that knows nothing of them."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import nn
from torch.nn.utils import parametrize


class HeldZeros(nn.Module):
    """A parametrization that gives a weight with zero wherever `zeros`, a boolean of its shape, is true.

    No gradient reaches what is held, so that whatever an optimizer does to the numbers below changes nothing.
    """

    zeros: torch.Tensor

    def __init__(self, zeros: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("zeros", zeros)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with its zeros."""
        return weight.masked_fill(self.zeros, 0)


def hold_zeros(module: nn.Module, names: Collection[str]) -> None:
    """Hold the zeros that the parameters of these names have now. Tied weights stay tied, and are held wherever they are read."""
    parameters = {id(found): found for found in (module.get_parameter(name) for name in sorted(names))}
    for parameter in parameters.values():
        readers = [
            (reader, name)
            for reader in module.modules()
            for name, value in reader.named_parameters(recurse=False, remove_duplicate=False)
            if value is parameter
        ]
        zeros = parameter.detach() == 0
        for reader, name in readers:
            parametrize.register_parametrization(reader, name, HeldZeros(zeros))


def without_holds(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy with ordinary weights whose held numbers are exactly zero, and their names; the module itself if none is held."""
    held = [
        (prefix, name)
        for prefix, reader in module.named_modules()
        if parametrize.is_parametrized(reader)
        for name, steps in reader.parametrizations.items()
        if any(isinstance(step, HeldZeros) for step in steps)
    ]
    if not held:
        return module, []
    plain = copy.deepcopy(module)
    for prefix, name in held:
        parametrize.remove_parametrizations(plain.get_submodule(prefix), name, leave_parametrized=True)
    return plain, sorted(f"{prefix}.{name}".lstrip(".") for prefix, name in held)
