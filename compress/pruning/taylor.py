"""Taylor pruning: which units the loss would hardly miss, and their removal.

First-order Taylor expansion of the loss in a gate of one on each unit (Molchanov, Tyree, Karras, Aila and Kautz, "Pruning
convolutional neural networks for resource efficient inference", 2017; Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance
estimation for neural network pruning", 2019): per sample, the sum over places of activation times gradient; then the root of
the mean of its square, since signed sums cancel where training has converged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import in_order, spread_rows
from fleetfit.compress.graph.modes import evaluating
from fleetfit.compress.passes.base import Arrays, PassContext, PassReport
from fleetfit.compress.pruning.cutting import cut_the_least
from fleetfit.compress.structure.groups import Group, Structure, analyse
from fleetfit.compress.structure.spaces import unit_elements
from fleetfit.compress.training.losses import DistillationLoss, Kind
from fleetfit.compress.training.teacher import Teacher
from fleetfit.core.errors import InvalidData, InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.taylor_pruning import TaylorPruning

_BATCH: Final = 64
# So many samples tell what kind of outputs the original has, and how much they vary.
_KINDS_FROM: Final = 4096


def prune_by_taylor(model: LayeredModel, settings: TaylorPruning, context: PassContext) -> PassReport:
    """Remove the units of `model` that the loss would hardly miss; the work of `TaylorPruning`."""
    data = spread_rows(context.training_data("taylor_pruning"), settings.samples, context.seed)
    structure = analyse(model)
    planned = structure.planned(settings, settings.layers)
    scores, asked = loss_changes(model, structure, [group for group, _ in planned], data, context)
    notes = cut_the_least(model, structure, planned, scores, settings, context, comparable=True)
    context.report(1.0, "removed what the loss would hardly miss")
    return PassReport(notes=[f"the loss is that of {asked}", *notes])


def loss_changes(
    model: LayeredModel, structure: Structure, groups: Sequence[Group], data: Arrays, context: PassContext
) -> tuple[dict[str, torch.Tensor], str]:
    """By how much the loss changes with each unit, to first order, and in words which loss it is.

    The loss is the distance from the teacher and the labels. Where there are no labels, classes are drawn from the teacher's
    probabilities; to other outputs of the teacher a normal deviation as large as their spread is added. For at the teacher
    itself the distance from it has no gradient, and the mean square under its own answers is the curvature there (Fisher's
    information).

    Args:
        model: Is not changed. `structure` was found in it.
        structure: From `analyse(model)`.
        groups: The groups of which the units are asked for.
        data: The samples.
        context: Gives the teacher, the task, the seed and where to report.

    Returns:
        For each group's name the root of the mean over samples of the squared change, shape (size,), float64; and the words.

    Raises:
        InvalidRecipe: There is no teacher, or no output depends on a unit smoothly.
        InvalidData: A gradient is not finite.
    """
    if context.teacher is None:
        raise InvalidRecipe("taylor_pruning needs the original as a trainable model; push it as a .pt2 archive")
    aims = _Aims(context.teacher, data, context)
    gated = _Gated(model, structure, groups)
    squares = torch.zeros(gated.units, dtype=torch.float64)
    seen = 0
    with evaluating(model), torch.enable_grad():
        for inputs, real in in_order(model, data, _BATCH):
            outputs, gates = gated.run_with(inputs)
            loss = aims.loss({name: value[:real] for name, value in outputs.items()}, seen)
            if not loss.requires_grad:
                raise InvalidRecipe("taylor_pruning finds no output that has a gradient; use activation_pruning")
            (slopes,) = torch.autograd.grad(loss, gates, allow_unused=True)
            if slopes is not None:
                # The loss is a mean over the batch.
                squares += (slopes.double() * real).square().sum(0)[: gated.units]
            seen += real
            context.report(0.9 * seen / len(data), "looking at what the loss would miss")
    if not bool(torch.isfinite(squares).all()):
        raise InvalidData("gradients are not finite on the training data; look for NaN or huge values")
    parts = torch.split((squares / len(data)).sqrt(), [group.size for group in groups])
    return dict(zip((group.name for group in groups), parts, strict=True)), aims.words


class _Aims:
    """What the model's outputs are held against."""

    def __init__(self, teacher: LayeredModel, data: Arrays, context: PassContext) -> None:
        self._teacher = Teacher(teacher, data)
        self._teacher.prepare(np.arange(len(data), dtype=np.int64))
        self._labels = None if data.targets is None else torch.from_numpy(np.ascontiguousarray(data.targets))
        self._loss = DistillationLoss.for_outputs(
            self._teacher.some(_KINDS_FROM),
            None if self._labels is None else self._labels[:_KINDS_FROM],
            task=context.task,
            temperature=1.0,
            label_weight=1.0,
        )
        self._random = torch.Generator().manual_seed(context.seed)
        first = self._loss.kinds[next(iter(self._loss.kinds))]
        self._draws = not self._loss.labels and first is not Kind.VALUES
        self.words = "the labels and the original's outputs" if self._loss.labels else "the original's outputs"
        if self._draws:
            self._loss = dataclasses.replace(self._loss, labels=True)

    def loss(self, outputs: Mapping[str, torch.Tensor], begin: int) -> torch.Tensor:
        """The mean loss of the outputs for the samples from `begin` on."""
        count = len(next(iter(outputs.values())))
        answers = self._teacher.of(np.arange(begin, begin + count, dtype=np.int64))
        labels = None if self._labels is None else self._labels[begin : begin + count]
        if self._draws:
            name = next(iter(self._loss.kinds))
            labels = self._drawn(self._loss.kinds[name], answers[name])
        for name, kind in self._loss.kinds.items():
            if kind is Kind.VALUES:
                value = answers[name].float()
                spread = self._loss.scales[name] ** 0.5
                answers[name] = value + spread * torch.randn(value.shape, generator=self._random)
        return self._loss(outputs, answers, labels)

    def _drawn(self, kind: Kind, answer: torch.Tensor) -> torch.Tensor:
        if kind is Kind.BINARY_LOGIT:
            return torch.bernoulli(torch.sigmoid(answer.float()), generator=self._random)
        chances = answer.float().softmax(-1) if kind is Kind.LOGITS else answer.float().clamp_min(1e-12)
        return torch.multinomial(chances, 1, generator=self._random).flatten()


@dataclass
class _Edge:
    """How a layer reads units."""

    axis: int
    """Of what it reads, along which they lie."""
    columns: torch.Tensor
    """For each element along it the number of its gate."""


class _Gated(fx.Interpreter):
    """Runs a model with a gate of one, for each sample, on every unit where a layer reads it: what removal would close."""

    def __init__(self, model: LayeredModel, structure: Structure, groups: Sequence[Group]) -> None:
        super().__init__(model.module)
        self._model = model
        self.units = sum(group.size for group in groups)
        self._edges: dict[str, _Edge] = {}
        for cut in structure.cuts:
            if cut.given:
                leaf = model.module.get_submodule(cut.module)
                # The last gate is for what belongs to no unit, and is not asked for.
                columns = torch.full((sum(one.elements() for one in cut.given),), self.units)
                begin = 0
                for group in groups:
                    if any(one.space is not None and one.space.root() is group.space.root() for one in cut.given):
                        columns[unit_elements(cut.given, group.space)] = torch.arange(begin, begin + group.size)
                    begin += group.size
                self._edges[cut.module] = _Edge(-1 if isinstance(leaf, (nn.Linear, nn.LSTM, nn.GRU)) else 1, columns)
        self._gates = torch.ones(0)

    def run_with(self, inputs: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The outputs for a batch by name, and the gates, shape (batch, units + 1), float32."""
        count = len(inputs[self._model.inputs[0].name])
        self._gates = torch.ones(count, self.units + 1, requires_grad=True)
        result = self.run(*(inputs[tensor.name] for tensor in self._model.inputs))
        return self._model.name_outputs(result), self._gates

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Close nothing, but let what is read pass through the gates."""
        edge = self._edges.get(str(target))
        if edge is not None:
            value, *rest = args
            args = (value * self._shaped(value, edge), *rest)
        return super().call_module(target, args, kwargs)

    def _shaped(self, value: torch.Tensor, edge: _Edge) -> torch.Tensor:
        count = len(self._gates)
        # Where places were joined with the batch, a sample has as many rows; where the batch is gone, one gate serves all.
        rows = self._gates if len(value) % count == 0 else self._gates[:1]
        if len(rows) == count:
            rows = rows.repeat_interleave(len(value) // count, 0)
        shape = [1] * value.dim()
        shape[0], shape[edge.axis] = len(rows), len(edge.columns)
        return rows[:, edge.columns].to(value.dtype).reshape(shape)
