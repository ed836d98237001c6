"""Low-rank factorization of linear layers: where outputs really vary decides, not the weights alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import PassContext, PassReport
from fleetfit.compress.structure.batches import spread_rows
from fleetfit.compress.structure.observe import observe
from fleetfit.compress.structure.walk import shared_modules
from fleetfit.core.errors import InvalidData, InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.low_rank import LowRank


def factorize_linear_layers(model: LayeredModel, settings: LowRank, context: PassContext) -> PassReport:
    """Split the linear layers of `model` for which two thinner ones cost less; the work of `LowRank`.

    The best rank-r approximation of W under the inputs' covariance C, the SVD of W C^(1/2) cut at r, is P W with P the
    projection on the r leading eigenvectors of W C W', the covariance of the layer's outputs. So the outputs are watched, and
    no root of C is taken or inverted. What is cut off is replaced by its mean, which goes into the bias.
    """
    layers = _linear_layers(model)
    if not layers:
        raise InvalidRecipe("low_rank finds no linear layer in this model; leave the step out")
    moments = _output_moments(model, layers, settings, context)
    notes = []
    for name in layers:
        layer = model.module.get_submodule(name)
        assert isinstance(layer, nn.Linear)  # noqa: S101 - for the type checker
        if name not in moments:
            notes.append(f"{name} stays whole: no data reach it")
            continue
        mean, covariance = moments[name]
        rank, vectors, share = _choose(covariance, layer, settings)
        saving = 1 - rank * (layer.in_features + layer.out_features) / (layer.in_features * layer.out_features)
        if saving <= 0 or saving < settings.least_saving:
            what = f"save only {saving:.0%} of its weights" if saving > 0 else "cost more"
            notes.append(f"{name} stays whole: rank {rank} would {what}")
            continue
        _split(model, name, layer, vectors[:, :rank], mean)
        notes.append(
            f"{name}: {layer.in_features} x {layer.out_features} -> rank {rank}, {share:.1%} of the variance kept"
        )
    model.module.graph.lint()
    model.module.recompile()
    context.report(1.0, "split the linear layers")
    return PassReport(notes=notes)


def _linear_layers(model: LayeredModel) -> list[str]:
    shared = shared_modules(model.module)
    names = [
        str(node.target)
        for node in model.module.graph.nodes
        if node.op == "call_module" and type(model.module.get_submodule(str(node.target))) is nn.Linear
    ]
    return [name for name in dict.fromkeys(names) if name not in shared]


def _output_moments(
    model: LayeredModel, layers: list[str], settings: LowRank, context: PassContext
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each layer the mean and the covariance of its outputs, float64."""
    nodes = {n.name: str(n.target) for n in model.module.graph.nodes if n.op == "call_module" and n.target in layers}
    sums: dict[str, torch.Tensor] = {}
    squares: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def look(node: str, value: torch.Tensor, real: int) -> None:
        name = nodes[node]
        rows = value[:real].reshape(-1, value.shape[-1]).to(torch.float64)
        if name not in sums:
            sums[name] = torch.zeros(rows.shape[1], dtype=torch.float64)
            squares[name] = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
            counts[name] = 0
        sums[name] += rows.sum(0)
        squares[name] += rows.T @ rows
        counts[name] += len(rows)

    data = spread_rows(context.training_data("low_rank"), settings.samples, context.seed)
    observe(model, data, nodes, look, lambda done: context.report(0.8 * done, "looking at what the linear layers give"))
    moments = {}
    for name, count in counts.items():
        mean = sums[name] / count
        covariance = squares[name] / count - torch.outer(mean, mean)
        if not bool(torch.isfinite(covariance).all()):
            raise InvalidData(f"outputs of {name} are not finite on the training data; look for NaN or huge values")
        moments[name] = (mean, covariance)
    return moments


def _choose(covariance: torch.Tensor, layer: nn.Linear, settings: LowRank) -> tuple[int, torch.Tensor, float]:
    """The rank, the eigenvectors with the largest eigenvalue first, and the share of variance that the rank keeps."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    most = min(layer.in_features, layer.out_features)
    shares = torch.cumsum(values, 0) / values.sum().clamp_min(1e-300)
    if settings.energy is not None:
        rank = int((shares < settings.energy).sum()) + 1
    else:
        rank = math.ceil((settings.ratio or 1.0) * most)
    rank = min(most, math.ceil(max(rank, 1) / settings.round_to) * settings.round_to)
    return rank, vectors, float(shares[rank - 1])


def _split(model: LayeredModel, name: str, layer: nn.Linear, basis: torch.Tensor, mean: torch.Tensor) -> None:
    """Put two layers in the place of one: into `basis` (shape (out, rank)), and out of it again."""
    weight = layer.weight.detach().to(torch.float64)
    bias = torch.zeros(layer.out_features, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
    # P (W x) + (I - P) m + b, where m = mean - b is the mean of W x.
    centre = mean - bias
    offset = bias + centre - basis @ (basis.T @ centre)
    rank = basis.shape[1]
    into = nn.Linear(layer.in_features, rank, bias=False, device="meta")
    out = nn.Linear(rank, layer.out_features, bias=True, device="meta")
    dtype = layer.weight.dtype
    into.weight = nn.Parameter((basis.T @ weight).to(dtype))
    out.weight = nn.Parameter(basis.to(dtype).contiguous())
    out.bias = nn.Parameter(offset.to(dtype))
    parent, _, last = name.rpartition(".")
    pair = nn.Sequential(into, out).train(layer.training)
    setattr(model.module.get_submodule(parent), last, pair)
    for node in [n for n in model.module.graph.nodes if n.op == "call_module" and n.target == name]:
        with model.module.graph.inserting_before(node):
            first = model.module.graph.call_module(f"{name}.0", node.args)
            second = model.module.graph.call_module(f"{name}.1", (first,))
        node.replace_all_uses_with(second)
        model.module.graph.erase_node(node)
