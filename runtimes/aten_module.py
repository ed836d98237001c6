"""A build of the format `aten` as a module of the PyTorch that is here."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.aten import REFERENCES, Network, Weight, placeholder


def rebuild(network: Network, device: str = "cpu") -> Any:
    """The network as a `torch.fx.GraphModule` on a device, which takes its inputs in order and returns a tuple of its outputs.

    Raises InvalidModel where this torch has not all of the operators.
    """
    import torch

    root = torch.nn.Module()
    graph = torch.fx.Graph()
    found: dict[str, list[Any]] = {"node": []}
    # Names are ours: they become Python source.
    found["input"] = [graph.placeholder(placeholder(at)) for at in range(len(network.inputs))]
    for at, weight in enumerate(network.weights):
        root.register_buffer(f"weight_{at}", _tensor(network, weight).to(device))
    found["weight"] = [graph.get_attr(f"weight_{at}") for at in range(len(network.weights))]
    for node in network.nodes:
        args = tuple(_given(value, found, device) for value in node.args)
        kwargs = {name: _given(value, found, device) for name, value in node.kwargs.items()}
        found["node"].append(graph.call_function(_operator(node.operator), args, kwargs))
    graph.output(tuple(_given(value, found, device) for value in network.outputs.values()))
    return torch.fx.GraphModule(root, graph).eval()


def _tensor(network: Network, weight: Weight) -> Any:
    import torch

    # A copy of its own: PyTorch may write to it, and bytes are not to be written to.
    content = bytearray(network.content[weight.offset : weight.offset + weight.size])
    if not content:
        return torch.empty(weight.shape, dtype=getattr(torch, weight.dtype))
    return torch.frombuffer(content, dtype=getattr(torch, weight.dtype)).reshape(weight.shape)


def _given(value: Any, found: Mapping[str, Sequence[Any]], device: str) -> Any:
    import torch

    if isinstance(value, list):
        return [_given(part, found, device) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, what),) = value.items()
    if kind in REFERENCES:
        return found[kind][what]
    if kind == "text":
        return what
    return torch.device(device) if kind == "device" else getattr(torch, what)


def _operator(name: str) -> Any:
    import torch

    home, _, last = name.rpartition(".")
    if home == "_operator":
        return getattr(operator, last)
    if home == "math":
        return getattr(math, last)
    if home == "torch":
        return getattr(torch, last)
    packet, overload = name.removeprefix("torch.ops.aten.").split(".")
    try:
        return getattr(getattr(torch.ops.aten, packet), overload)
    except AttributeError as error:
        raise InvalidModel(
            f"torch {torch.__version__} has no operator '{packet}.{overload}', which the build calls; use another runtime"
        ) from error
