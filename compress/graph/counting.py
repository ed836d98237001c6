"""Parameters, bytes and multiply-accumulates of a layered model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fleetfit.compress.graph.modes import evaluating

if TYPE_CHECKING:
    from fleetfit.compress.graph.layered import LayeredModel


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """All parameters, each once however often it is tied."""
    return list(module.parameters())


def weight_bytes_of(module: nn.Module) -> int:
    """Bytes of all parameters and persistent buffers, each once."""
    found: dict[int, int] = {}
    for tensor in (*module.parameters(), *_buffers(module)):
        found[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(found.values())


def _buffers(module: nn.Module) -> Iterator[torch.Tensor]:
    for name, buffer in module.named_buffers():
        # A counter that no runtime reads.
        if not name.endswith("num_batches_tracked"):
            yield buffer


def recognised_share(module: fx.GraphModule) -> float:
    """The share of parameters that belong to leaf modules of the graph."""
    total = sum(parameter.numel() for parameter in module.parameters())
    if total == 0:
        return 1.0
    inside: dict[int, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            for parameter in module.get_submodule(str(node.target)).parameters():
                inside[id(parameter)] = parameter.numel()
    return sum(inside.values()) / total


@contextmanager
def _silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def count_macs(model: LayeredModel) -> int:
    """Multiply-accumulates for one sample, counted while the sample inputs run through the graph.

    Convolutions, matrix products and attention count, whether in a recognised layer or not; element-wise work does not.
    """
    # Fused attention and fused recurrent layers are opaque to the counter; their plain forms are products it sees.
    with (
        evaluating(model),
        # Switching oneDNN off and on again warns about GPUs that are not there.
        _silence(),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
        FlopCounterMode(display=False) as counter,
    ):
        model.call(model.sample_inputs)
    return int(counter.get_total_flops()) // 2 // max(model.sample_batch(), 1)
