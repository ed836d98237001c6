"""The tensors of an exported program, and where they live in the relayered module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule

from fleetfit.core.errors import InvalidModel


@dataclass(eq=False)
class Weight:
    """One tensor of the program; tied names share one."""

    name: str
    tensor: torch.Tensor
    """An `nn.Parameter` if it can be trained."""

    @property
    def is_parameter(self) -> bool:
        """Whether it is trained, rather than kept."""
        return isinstance(self.tensor, nn.Parameter)


def weights_of(program: torch.export.ExportedProgram) -> dict[str, Weight]:
    """Every parameter, buffer and constant by the name of its placeholder, in memory of its own."""
    found: dict[str, Weight] = {}
    tied: dict[tuple[object, ...], Weight] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.USER_INPUT, InputKind.TOKEN) or spec.target is None:
            continue
        if spec.kind is InputKind.CUSTOM_OBJ:
            raise InvalidModel("The model holds a script object, which is refused; build it from PyTorch's own layers.")
        stored = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if not isinstance(stored, torch.Tensor):
            raise InvalidModel(f"The model file has no numbers for its weight {spec.target!r}; export it again.")
        # The archive keeps tied weights as one storage under several names.
        identity = (stored.data_ptr(), tuple(stored.shape), tuple(stored.stride()), stored.dtype)
        weight = tied.get(identity) if stored.numel() else None
        if weight is None:
            own = stored.detach().clone()
            if spec.kind is InputKind.PARAMETER:
                own = nn.Parameter(own, requires_grad=own.is_floating_point())
            weight = Weight(str(spec.target), own)
            tied[identity] = weight
        found[spec.arg.name] = weight
    return found


class Namespace:
    """Puts leaf modules, parameters and buffers into a root module, under the names the user knows where possible."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self._leaves: set[str] = set()
        self._containers: set[str] = set()
        self._attributes: dict[int, str] = {}

    def add_module(self, wanted: str, module: nn.Module) -> str:
        """Register a leaf and return its path."""
        path = self._claim(wanted)
        self._parent(path).add_module(path.rpartition(".")[2], module)
        return path

    def add_tensor(self, weight: Weight) -> str:
        """Register a tensor that no leaf owns (once) and return its path."""
        known = self._attributes.get(id(weight))
        if known is not None:
            return known
        path = self._claim(weight.name)
        parent, last = self._parent(path), path.rpartition(".")[2]
        if isinstance(weight.tensor, nn.Parameter):
            parent.register_parameter(last, weight.tensor)
        else:
            parent.register_buffer(last, weight.tensor)
        self._attributes[id(weight)] = path
        return path

    def _parent(self, path: str) -> nn.Module:
        module = self.root
        for part in path.split(".")[:-1]:
            child = module._modules.get(part)
            if child is None:
                child = nn.Module()
                module.add_module(part, child)
            module = child
        return module

    def _claim(self, wanted: str) -> str:
        parts = [
            f"{part}_" if hasattr(GraphModule, part) or part in ("training", "graph") else part
            for part in wanted.split(".")
        ]
        path = ".".join(part or "_" for part in parts)
        if not self._free(path):
            flat = path.replace(".", "_")
            path, number = flat, 1
            while not self._free(path):
                path, number = f"{flat}_{number}", number + 1
        self._leaves.add(path)
        for end, letter in enumerate(path):
            if letter == ".":
                self._containers.add(path[:end])
        return path

    def _free(self, path: str) -> bool:
        prefixes = {path[:end] for end, letter in enumerate(path) if letter == "."}
        return path not in self._leaves and path not in self._containers and not prefixes & self._leaves
