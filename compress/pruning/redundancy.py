"""Redundancy pruning: which units the others can stand in for, and the weights by which they do.

The choice is an interpolative decomposition (Cheng, Gimbutas, Martinsson and Rokhlin, "On the compression of low rank matrices",
2005) of a layer's activations, as Chee, Flynn, Damle and De Sa use it ("Model preserving compression for neural networks", 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf
from torch import nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import spread_rows
from fleetfit.compress.graph.kinds import CONVOLUTIONS
from fleetfit.compress.graph.observe import observe
from fleetfit.compress.passes.base import Arrays, PassContext, PassReport
from fleetfit.compress.structure.groups import Cut, Group, analyse, reading_cuts
from fleetfit.compress.structure.removal import remove_units
from fleetfit.compress.structure.spaces import Space, unit_elements
from fleetfit.core.errors import InvalidData

if TYPE_CHECKING:
    from fleetfit.compress.passes.redundancy_pruning import RedundancyPruning

# Of the rows that one batch gives (samples times places) at most so many are used: places of one picture are much alike.
_MOST_ROWS = 1 << 16


def prune_by_redundancy(model: LayeredModel, settings: RedundancyPruning, context: PassContext) -> PassReport:
    """Fold the units of `model` that others can stand in for, and remove them; the work of `RedundancyPruning`.

    Layers are taken in their order, each looked at with all earlier ones folded already, so errors do not add up unseen.
    """
    data = spread_rows(context.training_data("redundancy_pruning"), settings.samples, context.seed)
    structure = analyse(model)
    planned = structure.planned(settings, settings.layers, foldable=True)
    kept: dict[str, torch.Tensor] = {}
    notes = []
    for at, (group, own) in enumerate(planned):
        space = group.space.root()
        reads = reading_cuts(structure.cuts, space)
        readers = [_reader(model, cut, space) for cut in reads]

        def report(done: float, at: int = at) -> None:
            context.report((at + done) / len(planned), "looking for what others can stand in for")

        _look(model, readers, data, report)
        mask, share = _choose(readers, group, own)
        kept[group.name] = mask
        notes.append(f"{group.narrowed_to(int(mask.sum()))}, {share:.2%} of what is read explained")
        if not bool(mask.all()):
            for reader in readers:
                _fold(reader, mask, own.ridge)
            filled = model.sparse & {f"{cut.module}.weight" for cut in reads}
            model.sparse -= filled
            notes += [f"{name}: its zeros were filled by what was folded into it" for name in sorted(filled)]
    remove_units(model, structure, kept)
    return PassReport(notes=notes)


@dataclass
class _Reader:
    """One layer that reads the units of a group, and the second moments of what it reads."""

    leaf: nn.Module
    axis: int
    """Of its weight, along which the units lie."""
    elements: torch.Tensor
    """Shape (copies, size): where along that axis each unit lies."""
    sources: set[str]
    """Names of the nodes that it reads."""
    along: int
    """Of what it reads, the axis along which the units lie."""
    count: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    @property
    def has_intercept(self) -> bool:
        """Whether a constant can go into the bias: not where it would be missing at the padded border."""
        if getattr(self.leaf, "bias", None) is None:
            return False
        if isinstance(self.leaf, CONVOLUTIONS):
            return self.leaf.padding != "same" and not any(self.leaf.padding)
        return isinstance(self.leaf, nn.Linear)

    def moments(self) -> torch.Tensor:
        """The covariance of the units, or their second moments where there is no intercept; shape (size, size)."""
        squares = self.squares / max(self.count, 1)
        if not self.has_intercept:
            return squares
        mean = self.sums / max(self.count, 1)
        return squares - torch.outer(mean, mean)

    def weight(self) -> torch.Tensor:
        """The weights that read the units: shape (..., copies, size), float64, a copy."""
        weight = _parameter(self.leaf, "weight").detach().to(torch.float64)
        return weight.movedim(self.axis, -1)[..., self.elements]

    def look(self, value: torch.Tensor, real: int) -> None:
        """Take in one batch."""
        rows = value[:real].movedim(self.along, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        # An odd stride, so that it does not keep falling into the same columns of a picture.
        stride = len(rows) * len(self.elements) // _MOST_ROWS
        rows = rows[:: max(1, stride | 1)].to(torch.float64)[:, self.elements].flatten(0, 1)
        if self.count == 0:
            self.sums = torch.zeros(rows.shape[1], dtype=torch.float64)
            self.squares = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        self.sums += rows.sum(0)
        self.squares += rows.T @ rows
        self.count += len(rows)


def _parameter(leaf: nn.Module, name: str) -> nn.Parameter:
    value = getattr(leaf, name)
    assert isinstance(value, nn.Parameter)  # noqa: S101 - for the type checker
    return value


def _reader(model: LayeredModel, cut: Cut, space: Space) -> _Reader:
    leaf = model.module.get_submodule(cut.module)
    nodes = [n for n in model.module.graph.nodes if n.op == "call_module" and n.target == cut.module]
    sources = {source.name for node in nodes for source in node.all_input_nodes}
    return _Reader(leaf, cut.axis, unit_elements(cut.layout, space), sources, -1 if isinstance(leaf, nn.Linear) else 1)


def _look(model: LayeredModel, readers: list[_Reader], data: Arrays, report: Callable[[float], None]) -> None:
    def look(name: str, value: torch.Tensor, real: int) -> None:
        for reader in readers:
            if name in reader.sources:
                reader.look(value, real)

    observe(model, data, {name for reader in readers for name in reader.sources}, look, report)
    if not all(bool(torch.isfinite(reader.squares).all()) for reader in readers):
        raise InvalidData("activations are not finite on the training data; look for NaN or huge values")


def _choose(readers: list[_Reader], group: Group, settings: RedundancyPruning) -> tuple[torch.Tensor, float]:
    """A mask of the units to keep, and the share of the weighted variance that they explain."""
    # One weight for each unit, whoever reads it: two units that are alike must stay alike.
    norms = torch.stack([reader.weight().square().flatten(0, -2).sum(0) for reader in readers]).sum(0).sqrt()
    moments = torch.stack([reader.moments() for reader in readers]).sum(0)
    weighted = torch.outer(norms, norms) * moments
    total = float(weighted.trace())
    if total <= 0:
        mask = torch.zeros(group.size, dtype=torch.bool)
        mask[: min(group.size, settings.multiple)] = True
        return mask, 1.0
    factor, pivots, rank, _ = dpstrf(weighted.numpy(), lower=1)
    explained = np.square(np.tril(factor)[:, :rank]).sum(0).cumsum() / total
    if settings.energy is not None:
        count = min(int((explained < settings.energy).sum()) + 1, max(rank, 1))
    else:
        count = max(1, group.size - math.floor((settings.ratio or 0.0) * group.size))
    count = min(group.size, math.ceil(count / settings.multiple) * settings.multiple)
    mask = torch.zeros(group.size, dtype=torch.bool)
    mask[torch.from_numpy(pivots[:count].astype(np.int64) - 1)] = True
    return mask, float(min(1.0, explained[min(count, rank) - 1])) if rank else 1.0


def _fold(reader: _Reader, mask: torch.Tensor, ridge: float) -> None:
    """Give the part of the units that go to those that stay; the weights that read the former become zero."""
    stay, go = mask.nonzero().flatten(), (~mask).nonzero().flatten()
    moments = reader.moments()
    inner = moments[stay][:, stay]
    inner = inner + (ridge * inner.diagonal().mean() + 1e-300) * torch.eye(len(stay), dtype=torch.float64)
    # Column j: by how much of each unit kept unit j is replaced. Least norm where units kept depend on each other or are dead.
    shares = torch.linalg.lstsq(inner, moments[stay][:, go], driver="gelsd").solution
    weight = _parameter(reader.leaf, "weight")
    gone = reader.weight()[..., go]
    with torch.no_grad():
        fresh = weight.detach().to(torch.float64).movedim(reader.axis, -1).clone()
        fresh[..., reader.elements[:, stay]] += gone @ shares.T
        fresh[..., reader.elements[:, go]] = 0
        weight.copy_(fresh.movedim(-1, reader.axis).to(weight.dtype))
        if reader.has_intercept:
            mean = reader.sums / reader.count
            constant = mean[go] - mean[stay] @ shares
            bias = _parameter(reader.leaf, "bias")
            bias.add_((gone @ constant).flatten(1).sum(1).to(bias.dtype))
