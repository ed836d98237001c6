"""Batch norms: their statistics measured anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import batch_size, spread_rows, take
from fleetfit.compress.graph.kinds import BATCH_NORMS
from fleetfit.compress.passes.base import PassContext, PassReport
from fleetfit.core.errors import InvalidData, InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.reestimate_norms import ReestimateNorms

# Activations of all samples are held at once, up to so many bytes; samples run through each layer so many at a time.
_MOST_BYTES, _TOGETHER = 1 << 30, 256


def reestimate_norms(model: LayeredModel, settings: ReestimateNorms, context: PassContext) -> PassReport:
    """Replace the statistics of all batch norms of `model`; the work of `ReestimateNorms`.

    All samples go through one layer before any goes through the next: when a batch norm is met, its mean and variance over all
    of them are known exactly and are set before it is applied. That costs a single run, and fits any batch size.
    """
    calls = Counter(str(node.target) for node in model.module.graph.nodes if _is_norm(model.module, node))
    if not calls:
        raise InvalidRecipe("reestimate_norms finds no batch norm in this model; leave the step out")
    several = [name for name, count in calls.items() if count > 1]
    if len(several) == len(calls):
        raise InvalidRecipe(
            "reestimate_norms cannot measure a batch norm that is called several times, as all of this model are; leave "
            "the step out"
        )
    data = spread_rows(context.training_data("reestimate_norms"), settings.samples, context.seed)
    size = batch_size(model, _TOGETHER)
    training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad():
            width = model.sample_batch()
            peak = max(_by_layers(model, [model.sample_inputs], lambda node, values: None))
            most = max(int(_MOST_BYTES // max(1, peak / width)), 2, size if not model.dynamic_batch else 2)
            count = min(len(data), most)
            if not model.dynamic_batch:
                count -= count % size
            if count < 2:
                wanted = max(2, size if not model.dynamic_batch else 2)
                raise InvalidData(
                    f"reestimate_norms needs at least {wanted} training samples and there are {len(data)}; add data"
                )
            data = spread_rows(data, count, context.seed)
            chunks = [take(model, data, rows) for rows in np.split(np.arange(count), range(size, count, size))]
            moved: list[float] = []

            def measure(node: fx.Node, values: list[torch.Tensor]) -> None:
                name = str(node.target)
                if calls.get(name) == 1 and _is_norm(model.module, node):
                    moved.append(_set(name, model.module.get_submodule(name), values))

            total = len(model.module.graph.nodes)
            for done, _ in enumerate(_by_layers(model, chunks, measure), 1):
                context.report(done / total, "measuring what batch norms get")
    finally:
        model.module.train(training)
    notes = [
        f"batch norms measured on {count} samples: {len(moved)}; their means moved by {np.mean(moved):.2g} standard "
        "deviations on average"
    ]
    if several:
        notes.append(f"{', '.join(several)}: called several times, so left as it was")
    return PassReport(notes=notes)


def _is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    leaf = module.get_submodule(str(node.target))
    return isinstance(leaf, BATCH_NORMS) and leaf.running_mean is not None


def _by_layers(
    model: LayeredModel, chunks: list[dict[str, torch.Tensor]], before: Callable[[fx.Node, list[torch.Tensor]], None]
) -> Iterator[int]:
    """Run all chunks through each node in turn, and give after each how many bytes are held.

    `before` gets each called layer with its first input, one tensor per chunk.
    """
    runs = [fx.Interpreter(model.module) for _ in chunks]
    left = {node: len(node.users) for node in model.module.graph.nodes}
    inputs = iter(model.inputs)
    held: dict[fx.Node, int] = {}
    for node in model.module.graph.nodes:
        if node.op == "placeholder":
            name = next(inputs).name
            for run, chunk in zip(runs, chunks, strict=True):
                run.env[node] = chunk[name]
        else:
            if node.op == "call_module" and node.args and isinstance(node.args[0], fx.Node):
                before(node, [run.env[node.args[0]] for run in runs])
            for run in runs:
                run.env[node] = run.run_node(node)
        held[node] = sum(_bytes(run.env[node]) for run in runs)
        yield sum(held.values())
        for source in node.all_input_nodes:
            left[source] -= 1
        for gone in [source for source in (*node.all_input_nodes, node) if left[source] == 0]:
            held.pop(gone, None)
            for run in runs:
                run.env.pop(gone, None)


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations, each channel's own, float64; batches are added by Chan's formula."""

    count: int
    mean: torch.Tensor
    deviations: torch.Tensor

    @classmethod
    def of(cls, value: torch.Tensor) -> _Moments:
        axes = [axis for axis in range(value.dim()) if axis != 1]
        count = value.numel() // value.shape[1]
        variance, mean = torch.var_mean(value.float(), axes, correction=0)
        return cls(count, mean.double(), variance.double() * count)

    def add(self, other: _Moments) -> None:
        count, distance = self.count + other.count, other.mean - self.mean
        self.deviations = self.deviations + other.deviations + distance**2 * (self.count * other.count / count)
        self.mean = self.mean + distance * (other.count / count)
        self.count = count


def _set(name: str, norm: nn.Module, values: list[torch.Tensor]) -> float:
    """Give a batch norm the statistics of these inputs; how far its means moved, in its own old standard deviations."""
    moments = _Moments.of(values[0])
    for value in values[1:]:
        moments.add(_Moments.of(value))
    # PyTorch's running variance is the unbiased one.
    variance = moments.deviations / max(1, moments.count - 1)
    if not bool(torch.isfinite(variance).all()):
        raise InvalidData(f"what {name} gets is not finite on the training data; look for NaN or huge values")
    old_mean, old_variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    distance = (moments.mean - old_mean).abs() / (old_variance.double() + float(norm.eps)).sqrt()  # type: ignore[arg-type]
    old_mean.copy_(moments.mean)
    old_variance.copy_(variance)
    return float(distance.mean())
