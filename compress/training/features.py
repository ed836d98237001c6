"""Matching what layers inside the original give, not only its outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import torch
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.kinds import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from fleetfit.compress.structure.walk import shapes_of
from fleetfit.core.errors import InvalidRecipe

# Of itself it matches the last layers of so many stages; each costs time.
_MOST_STAGES: Final = 3
_RIDGE: Final = 1e-4
# A unit that hardly varies is not blown up: its variance counts as at least this share of the layer's mean.
_LEAST_VARIANCE: Final = 1e-2
_CHANNELS_FIRST: Final = (
    *(*CONVOLUTIONS, *TRANSPOSED, *BATCH_NORMS),
    *(nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
)
_CHANNELS_LAST: Final = (nn.Linear, nn.LayerNorm, nn.Embedding)
_MAKES_NOTHING: Final = (
    *(nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Softmax, nn.LogSoftmax),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)


class Capture:
    """Keeps what the named layers of a module gave last; `close` takes the hooks off again."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.values: dict[str, Any] = {}
        self._handles = [module.get_submodule(name).register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, given: Any, result: Any) -> None:
            self.values[name] = result

        return keep

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self.values.clear()


@dataclass
class _Pair:
    """A layer of the original and the layer of the student that stands for it."""

    theirs: str
    ours: str
    axis: int
    """Along which units lie."""
    variance: torch.Tensor
    """Of each of the original's units, at least `_LEAST_VARIANCE` of their mean; float32, shape (units,)."""
    projector: nn.Linear | None
    """Where the student has another number of units: how the original's are guessed from them."""


class Features:
    """The mean squared difference between features, each unit's over its variance; 1 where a student knows nothing.

    Where the student's layer has another width, a linear map (a 1x1 convolution) stands between, begun from ridge least squares
    and trained along; it is no part of the model. Source: Romero et al., "FitNets: hints for thin deep nets" (2015).

    Args:
        student: Hooks are put into its module, until `close`.
        teacher: So too.
        wanted: Names or patterns of layers of the original, or "auto": the last layer of each of the last three stages
            (sizes of feature maps; in transformers thirds of the layers) and the last hidden layer before the output.
        samples: Inputs to find widths, variances and the maps' beginnings with.
        frozen_norms: Whether the student trains with the statistics its batch norms have. Where it does not, the maps begin
            from what it gives with those of `samples`: after a cut the stored ones are those of another network.

    Raises:
        InvalidRecipe: A pattern fits no layer, or no layer can be matched.
    """

    def __init__(
        self,
        student: LayeredModel,
        teacher: LayeredModel,
        wanted: Sequence[str] | Literal["auto"],
        samples: dict[str, torch.Tensor],
        *,
        frozen_norms: bool = False,
    ) -> None:
        self.notes: list[str] = []
        names = _last_of_stages(teacher) if wanted == "auto" else _named(teacher, wanted)
        found = {name: ours for name in names if (ours := _stands_for(student, name)) is not None}
        self._left_out(sorted(set(names) - set(found)), "they are no longer there or called several times")
        self._ours = Capture(student.module, list(found.values()))
        self._theirs = Capture(teacher.module, list(found))
        self.pairs: list[_Pair] = []
        try:
            self._prepare(student, teacher, found, samples, frozen_norms)
        except BaseException:
            self.close()
            raise
        self._begun_with = [
            None if pair.projector is None else {k: v.clone() for k, v in pair.projector.state_dict().items()}
            for pair in self.pairs
        ]

    def parameters(self) -> list[nn.Parameter]:
        """What is trained along."""
        return [p for pair in self.pairs if pair.projector is not None for p in pair.projector.parameters()]

    def reset(self) -> None:
        """Set the maps to where they began."""
        for pair, state in zip(self.pairs, self._begun_with, strict=True):
            if pair.projector is not None and state is not None:
                pair.projector.load_state_dict(state)

    def loss(self) -> torch.Tensor:
        """For the batch that student and teacher were called with last: the mean over layers."""
        losses = []
        for pair in self.pairs:
            ours = self._ours.values[pair.ours].movedim(pair.axis, -1).float()
            theirs = self._theirs.values[pair.theirs].movedim(pair.axis, -1).float()
            if pair.projector is not None:
                ours = pair.projector(ours)
            losses.append(((ours - theirs).square() / pair.variance).mean())
        return torch.stack(losses).mean()

    def said(self) -> list[str]:
        """Which layers are matched, and which are not."""
        layers = [
            f"{p.theirs} ({p.projector.in_features} to {p.projector.out_features})" if p.projector else p.theirs
            for p in self.pairs
        ]
        return [f"features matched: {', '.join(layers)}", *self.notes]

    def close(self) -> None:
        """Take the hooks out of both models."""
        self._ours.close()
        self._theirs.close()

    def _left_out(self, names: Sequence[str], why: str) -> None:
        if names:
            self.notes.append(f"features of {', '.join(names)} are not matched: {why}")

    def _prepare(
        self,
        student: LayeredModel,
        teacher: LayeredModel,
        found: dict[str, str],
        samples: dict[str, torch.Tensor],
        frozen_norms: bool,
    ) -> None:
        modes = student.module.training, teacher.module.training
        stored = {name: value.clone() for name, value in student.module.named_buffers()}
        try:
            with torch.no_grad():
                for model in (student, teacher):
                    model.module.eval()
                if not frozen_norms:
                    for layer in student.module.modules():
                        layer.train(isinstance(layer, BATCH_NORMS))
                for model in (student, teacher):
                    model.call(samples)
                for name, value in student.module.named_buffers():
                    value.copy_(stored[name])
        finally:
            student.module.train(modes[0])
            teacher.module.train(modes[1])
        axes = _axes(teacher)
        for theirs, ours in found.items():
            y, x = self._theirs.values[theirs], self._ours.values[ours]
            axis = axes[theirs]
            if not isinstance(y, torch.Tensor) or not y.is_floating_point() or y.dim() < 2:
                self._left_out([theirs], "they are not tensors of numbers by sample")
                continue
            x, y = x.movedim(axis, -1), y.movedim(axis, -1)
            if x.shape[:-1] != y.shape[:-1]:
                self._left_out([theirs], "their places differ in number")
                continue
            x, y = x.reshape(-1, x.shape[-1]).double(), y.reshape(-1, y.shape[-1]).double()
            variance = y.var(0, unbiased=False)
            variance = variance.clamp_min(max(1e-12, _LEAST_VARIANCE * float(variance.mean())))
            projector = None if x.shape[1] == y.shape[1] else _least_squares(x, y)
            self.pairs.append(_Pair(theirs, ours, axis, variance.float(), projector))
        if not self.pairs:
            why = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise InvalidRecipe(f"distill finds no layer whose features could be matched{why}; leave features out")


def _least_squares(x: torch.Tensor, y: torch.Tensor) -> nn.Linear:
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    ridge = _RIDGE * float(gram.diagonal().mean()) + 1e-12
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), x.T @ y).T
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.float().contiguous())
    layer.bias = nn.Parameter((mean_y - weight @ mean_x).float())
    return layer


def _calls(model: LayeredModel) -> dict[str, fx.Node]:
    """Layers that are called once, in the order of the graph."""
    nodes = [node for node in model.module.graph.nodes if node.op == "call_module"]
    counts = Counter(str(node.target) for node in nodes)
    return {str(node.target): node for node in nodes if counts[str(node.target)] == 1}


def _named(teacher: LayeredModel, patterns: Sequence[str]) -> list[str]:
    layers = list(_calls(teacher))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            some = ", ".join(layers[:12]) + (", ..." if len(layers) > 12 else "")
            raise InvalidRecipe(f"distill: no layer is called {pattern}; features can name {some}")
    return [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _stands_for(student: LayeredModel, name: str) -> str | None:
    """The student's layer for a layer of the original: of the same name, or the last of those it was split into."""
    layers = _calls(student)
    if name in layers:
        return name
    parts = [layer for layer in layers if layer.startswith(f"{name}.")]
    return parts[-1] if parts else None


def _last_of_stages(teacher: LayeredModel) -> list[str]:
    shapes, batch = shapes_of(teacher), teacher.sample_batch()
    given = {node for node in teacher.module.graph.nodes if any(user.op == "output" for user in node.users)}
    maps: dict[tuple[int, ...], str] = {}
    rows: list[str] = []
    last = None
    for name, node in _calls(teacher).items():
        shape, leaf = shapes[node], teacher.module.get_submodule(name)
        if shape is None or len(shape) < 2 or shape[0] != batch or node in given or isinstance(leaf, _MAKES_NOTHING):
            continue
        if len(shape) >= 4 and shape[2:].numel() > 1:
            maps[tuple(shape[2:])] = name
        elif len(shape) == 3 and isinstance(leaf, (nn.LayerNorm, nn.BatchNorm1d, nn.Conv1d)):
            rows.append(name)
        elif len(shape) == 2:
            last = name
    chosen = list(maps.values())[-_MOST_STAGES:]
    if not chosen and rows:
        chosen = [rows[len(rows) * third // _MOST_STAGES - 1] for third in range(1, _MOST_STAGES + 1)]
    order = list(_calls(teacher))
    return sorted({*chosen, *([last] if last else [])}, key=order.index)


def _axes(model: LayeredModel) -> dict[str, int]:
    """Along which axis of its output each layer's units lie: as the last layer with weights before it says."""
    axes: dict[fx.Node, int] = {}
    found = {}
    for node in model.module.graph.nodes:
        before = next((axes[source] for source in node.all_input_nodes if source in axes), 1)
        axes[node] = before
        if node.op == "call_module":
            leaf = model.module.get_submodule(str(node.target))
            if isinstance(leaf, _CHANNELS_FIRST):
                axes[node] = 1
            elif isinstance(leaf, _CHANNELS_LAST):
                axes[node] = -1
            found[str(node.target)] = axes[node]
    return found
