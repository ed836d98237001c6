"""Batch norms: their statistics moved as a cut moved what they get, or measured anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import batch_size, spread_rows, take
from fleetfit.compress.graph.kinds import BATCH_NORMS
from fleetfit.compress.graph.modes import evaluating
from fleetfit.compress.passes.base import Arrays, PassContext, PassReport
from fleetfit.core.errors import InvalidData, InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.reestimate_norms import ReestimateNorms

# Activations of all samples are held at once, up to so many bytes; samples run through each layer so many at a time.
_MOST_BYTES, _TOGETHER = 1 << 30, 256
# Added to the variances that are compared, as a share of the stored one: a channel that hardly varies on these samples, or no
# longer does, says little about its scale.
_LEAST_VARIATION = 1e-3

_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_Chunks = list[dict[str, torch.Tensor]]
_Visit = Callable[[str, _Norm, "_Moments"], None]


def reestimate_norms(model: LayeredModel, settings: ReestimateNorms, context: PassContext) -> PassReport:
    """Replace the statistics of all batch norms of `model`; the work of `ReestimateNorms`.

    All samples go through one layer before any goes through the next: when a batch norm is met, the mean and variance of what it
    gets are known exactly, and its statistics are set before it is applied. That costs a single run (of the original another
    one), and fits any batch size.
    """
    calls = _calls(model.module)
    if not calls:
        raise InvalidRecipe("reestimate_norms finds no batch norm in this model; leave the step out")
    several = [name for name, count in calls.items() if count > 1]
    if len(several) == len(calls):
        raise InvalidRecipe(
            "reestimate_norms cannot measure a batch norm that is called several times, as all of this model are; leave "
            "the step out"
        )
    original = context.teacher if settings.statistics == "moved" else None
    if original is None and settings.statistics == "moved":
        raise InvalidRecipe(
            "reestimate_norms needs the original as a trainable model; push it as a .pt2 archive, or give 'statistics: measured'"
        )
    data = spread_rows(context.training_data("reestimate_norms"), settings.samples, context.seed)
    moved: list[float] = []
    strange: list[str] = []
    known: dict[str, _Moments] = {}
    models = [one for one in (original, model) if one is not None]

    def remember(name: str, norm: _Norm, moments: _Moments) -> None:
        known[name] = moments

    def measure(name: str, norm: _Norm, moments: _Moments) -> None:
        moved.append(_store(norm, moments.mean, moments.variance()))

    def move(name: str, norm: _Norm, moments: _Moments) -> None:
        origin = _norm_at(original, name) if original is not None else None
        kept = model.kept.get(name)
        if origin is not None and kept is None:
            kept = torch.arange(len(_mean_of(origin)))
        if origin is None or kept is None or name not in known or len(kept) != len(_mean_of(norm)):
            strange.append(name)
            return
        moved.append(_store(norm, *_moved(origin, kept, known[name].at(kept), moments)))

    with evaluating(*models), torch.no_grad():
        chunks, count = _fitting(models, data, context.seed)
        visits = [measure] if original is None else [remember, move]
        for at, (one, visit) in enumerate(zip(models, visits, strict=True)):
            for done in _at_norms(one, chunks, visit):
                context.report((at + done) / len(models), "measuring what batch norms get")
    how = "batch norms moved by what differs from the original" if original is not None else "batch norms measured"
    by = f"; their means moved by {np.mean(moved):.2g} standard deviations on average" if moved else ""
    notes = [f"{how} on {count} samples: {len(moved)}{by}"]
    if several:
        notes.append(f"{', '.join(several)}: called several times, so left as it was")
    if strange:
        notes.append(f"{', '.join(strange)}: not known in the original, so left as it was")
    return PassReport(notes=notes)


def _is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    leaf = module.get_submodule(str(node.target))
    return isinstance(leaf, BATCH_NORMS) and leaf.running_mean is not None


def _calls(module: fx.GraphModule) -> Counter[str]:
    """How often each batch norm with statistics is called."""
    return Counter(str(node.target) for node in module.graph.nodes if _is_norm(module, node))


def _norm_at(model: LayeredModel, name: str) -> _Norm | None:
    leaf = dict(model.module.named_modules()).get(name)
    return leaf if isinstance(leaf, BATCH_NORMS) and leaf.running_mean is not None else None


def _mean_of(norm: _Norm) -> torch.Tensor:
    return norm.get_buffer("running_mean")


def _fitting(models: Sequence[LayeredModel], data: Arrays, seed: int) -> tuple[_Chunks, int]:
    """As many of the samples as all of these models can hold, in batches, and how many they are."""
    model = models[-1]
    size = batch_size(model, _TOGETHER)
    peak = max(held for one in models for _, held in _by_layers(one, [one.sample_inputs], lambda node, values: None))
    most = max(int(_MOST_BYTES // max(1, peak / model.sample_batch())), 2, size if not model.dynamic_batch else 2)
    count = min(len(data), most)
    if not model.dynamic_batch:
        count -= count % size
    if count < 2:
        wanted = max(2, size if not model.dynamic_batch else 2)
        raise InvalidData(
            f"reestimate_norms needs at least {wanted} training samples and there are {len(data)}; add data"
        )
    data = spread_rows(data, count, seed)
    return [take(model, data, rows) for rows in np.split(np.arange(count), range(size, count, size))], count


def _at_norms(model: LayeredModel, chunks: _Chunks, visit: _Visit) -> Iterator[float]:
    """Run all chunks through each node in turn, and give the share that is done.

    `visit` gets each batch norm that is called once, before it is applied, with the moments of what it gets.
    """
    calls, total = _calls(model.module), len(model.module.graph.nodes)

    def before(node: fx.Node, values: list[torch.Tensor]) -> None:
        name = str(node.target)
        norm = _norm_at(model, name) if calls[name] == 1 else None
        if norm is None:
            return
        moments = _Moments.of(values[0])
        for value in values[1:]:
            moments.add(_Moments.of(value))
        if not bool(torch.isfinite(moments.deviations).all()):
            raise InvalidData(f"what {name} gets is not finite on the training data; look for NaN or huge values")
        visit(name, norm, moments)

    for done, _ in _by_layers(model, chunks, before):
        yield done / total


def _by_layers(
    model: LayeredModel, chunks: _Chunks, before: Callable[[fx.Node, list[torch.Tensor]], None]
) -> Iterator[tuple[int, int]]:
    """Run all chunks through each node in turn, and give after each how many nodes are done, and how many bytes are held.

    `before` gets each called layer with its first input, one tensor per chunk.
    """
    runs = [fx.Interpreter(model.module) for _ in chunks]
    left = {node: len(node.users) for node in model.module.graph.nodes}
    inputs = iter(model.inputs)
    held: dict[fx.Node, int] = {}
    for done, node in enumerate(model.module.graph.nodes, 1):
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
        yield done, sum(held.values())
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

    def at(self, channels: torch.Tensor) -> _Moments:
        """Those of some of the channels."""
        return _Moments(self.count, self.mean[channels], self.deviations[channels])

    def variance(self) -> torch.Tensor:
        """The unbiased one, as PyTorch's running variance is."""
        return self.deviations / max(1, self.count - 1)


def _moved(origin: _Norm, kept: torch.Tensor, was: _Moments, now: _Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance with which what is normalised `now` has the moments that it had in the original.

    Written as changes, so that nothing moves, not even by a rounding, where what comes in is the same.

    Args:
        origin: The original's batch norm.
        kept: Which of its channels are left, shape (channels,).
        was: What the original's channels `kept` get.
        now: What they get now, on the same samples.
    """
    mean, variance = _mean_of(origin)[kept].double(), origin.get_buffer("running_var")[kept].double()
    square = variance + origin.eps
    floor = _LEAST_VARIATION * square
    ratio = (now.variance() + floor) / (was.variance() + floor)
    wider = (variance + square * (ratio - 1)).clamp(min=0)
    scale = ((wider + origin.eps) / square).sqrt()
    return mean + (now.mean - was.mean) + (was.mean - mean) * (1 - scale), wider


def _store(norm: _Norm, mean: torch.Tensor, variance: torch.Tensor) -> float:
    """Give a batch norm these statistics; how far its means moved, in its own old standard deviations."""
    old_mean, old_variance = _mean_of(norm), norm.get_buffer("running_var")
    distance = (mean - old_mean).abs() / (old_variance.double() + norm.eps).sqrt()
    old_mean.copy_(mean)
    old_variance.copy_(variance)
    return float(distance.mean())
