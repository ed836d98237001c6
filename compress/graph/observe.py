"""Looking at what flows through a model while data run through it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import in_order
from fleetfit.compress.graph.modes import evaluating
from fleetfit.compress.passes.base import Arrays

Look = Callable[[str, torch.Tensor, int], None]


class _Observer(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: Collection[str], look: Look) -> None:
        super().__init__(module)
        self.names, self.look, self.real = set(names), look, 0

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, torch.Tensor):
            self.look(n.name, value, self.real)
        return value


def observe(
    model: LayeredModel, arrays: Arrays, names: Collection[str], look: Look, report: Callable[[float], None]
) -> None:
    """Run all samples in evaluation mode and show `look` what the named nodes give.

    Args:
        model: Is not changed.
        arrays: The samples.
        names: Names of graph nodes.
        look: Called with a node's name, its tensor, and how many of the batch's samples count (the first ones).
        report: Called with the fraction done.
    """
    observer = _Observer(model.module, names, look)
    seen = 0
    with evaluating(model), torch.no_grad():
        for inputs, real in in_order(model, arrays, 256):
            observer.real = real
            observer.run(*(inputs[tensor.name] for tensor in model.inputs))
            seen += real
            report(seen / len(arrays))
