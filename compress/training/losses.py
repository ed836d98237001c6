"""What a student is trained on: the teacher's outputs, each by its kind, and the labels where there are any."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from fleetfit.core.errors import InvalidRecipe


class Kind(enum.Enum):
    """What an output is."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    BINARY_LOGIT = "binary logit"
    VALUES = "values"
    ABSOLUTE = "values by absolute difference"
    DIRECTION = "directions"
    NOTHING = "nothing to learn"


_CLASSES = (Kind.LOGITS, Kind.PROBABILITIES)
_ASKED = {"mse": Kind.VALUES, "l1": Kind.ABSOLUTE, "cosine": Kind.DIRECTION, "none": Kind.NOTHING}


def kind_of(output: torch.Tensor, *, classifies: bool) -> Kind:
    """What the teacher's output over many samples is. `classifies`: it is the output that classes are read from."""
    if not output.is_floating_point():
        return Kind.NOTHING
    if not classifies:
        return Kind.VALUES
    if output.dim() == 1 or output.shape[-1] == 1:
        return Kind.BINARY_LOGIT
    return _distribution(output) if output.dim() == 2 else Kind.VALUES


def _distribution(output: torch.Tensor) -> Kind:
    if output.dim() == 1 or output.shape[_axis(output)] == 1:
        return Kind.BINARY_LOGIT
    sums = output.sum(_axis(output))
    # A softmax that is part of the model: its logarithm serves as logits (all softmax inputs that differ by a constant do).
    if float(output.min()) >= 0 and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3)):
        return Kind.PROBABILITIES
    return Kind.LOGITS


def _axis(output: torch.Tensor) -> int:
    """Where classes lie: last, but before the places of a map, as PyTorch's own cross entropy has it."""
    return 1 if output.dim() >= 4 else -1


def _kind_of_detections(name: str, teacher: Mapping[str, torch.Tensor]) -> Kind:
    """What an output of a detector is: boxes are values; scores of each class are learned one by one, or together."""
    shapes = [value.shape for value in teacher.values() if value.dim() == 3]
    output = teacher[name]
    if output.dim() != 3 or output.shape[2] == 4 or not output.is_floating_point():
        return kind_of(output, classifies=False)
    if output.shape[2] == 6 and not any(shape[2] == 4 for shape in shapes):
        # A class's number is no amount, and a difference from it says nothing.
        return Kind.NOTHING
    kind = _distribution(output)
    if kind is Kind.PROBABILITIES:
        return kind
    return Kind.VALUES if 0 <= float(output.min()) and float(output.max()) <= 1 else Kind.BINARY_LOGIT


def _chosen(name: str, teacher: Mapping[str, torch.Tensor], asked: str, task: str) -> Kind:
    output = teacher[name]
    if asked == "auto" and task == "detection":
        return _kind_of_detections(name, teacher)
    if asked == "auto":
        return kind_of(output, classifies=task == "classification" and name == next(iter(teacher)))
    if asked != "none" and not output.is_floating_point():
        raise InvalidRecipe(
            f"distill: the output {name} has whole numbers, which nothing can be learned from; give it none"
        )
    return _distribution(output) if asked == "kl" else _ASKED[asked]


@dataclass
class DistillationLoss:
    """The loss of a batch: over all outputs, each by its kind and times its weight, and the labels'.

    Logits: KL divergence of the outputs softened by `temperature`, times its square (so that the gradient's size does not
    depend on it), mean over samples and places. Values: mean squared difference over the variance of the teacher's output, or
    mean absolute difference over its mean absolute deviation. Directions: one minus the cosine along the last axis.
    `label_weight` times: for classes the cross entropy, else the squared difference from the targets over their variance, of
    the first output.
    """

    kinds: dict[str, Kind]
    weights: dict[str, float]
    scales: dict[str, float]
    """Variance of each output, or its mean absolute deviation where differences are absolute."""
    temperature: float
    label_weight: float
    labels: bool
    label_kind: Kind = Kind.VALUES
    target_scale: float = 1.0

    @classmethod
    def for_outputs(
        cls,
        teacher: Mapping[str, torch.Tensor],
        targets: torch.Tensor | None,
        *,
        task: str,
        temperature: float,
        label_weight: float,
        asked: Mapping[str, tuple[str, float]] | None = None,
    ) -> DistillationLoss:
        """The loss for a teacher with these outputs over the training split, and these targets of it.

        `asked` has a loss ("auto", "kl", "mse", "l1", "cosine", "none") and a weight for outputs by name; the others are chosen
        by `task` and by what the output looks like. Raises InvalidRecipe for outputs that there are not.
        """
        asked = asked or {}
        unknown = [name for name in asked if name not in teacher]
        if unknown:
            raise InvalidRecipe(f"distill: the model has no output {unknown[0]}; it has {', '.join(teacher)}")
        first = next(iter(teacher))
        kinds, scales = {}, {}
        for name, value in teacher.items():
            kinds[name] = _chosen(name, teacher, asked.get(name, ("auto", 1.0))[0], task)
            exact = value.double()
            spread = (exact - exact.mean()).abs().mean() if kinds[name] is Kind.ABSOLUTE else exact.var(unbiased=False)
            scales[name] = float(spread.clamp_min(1e-12))
        weights = {name: asked.get(name, ("auto", 1.0))[1] for name in teacher}
        label_kind = kind_of(teacher[first], classifies=task == "classification")
        labels = targets is not None and label_weight > 0 and label_kind is not Kind.NOTHING
        # Boxes would first have to be matched with targets; labels of several kinds at once say nothing about the values that
        # stand for them; the teacher's outputs do.
        labels = labels and task not in ("multilabel", "detection")
        scale = 1.0
        if targets is not None and task != "classification":
            labels = labels and targets.numel() == teacher[first].numel()
            scale = float(targets.double().var(unbiased=False).clamp_min(1e-12))
        elif label_kind is Kind.VALUES:
            labels = False
        loss = cls(kinds, weights, scales, temperature, label_weight, labels, label_kind, scale)
        if not labels and not loss.matched():
            if task == "detection" and not asked:
                raise InvalidRecipe(
                    f"distill: {first} holds boxes, scores and the numbers of classes at once, which no loss can compare; "
                    "export the model with boxes (N, K, 4) and scores (N, K, classes), or leave distill out"
                )
            raise InvalidRecipe(
                "distill: no output and no label is left to learn from; give an output a loss and a weight"
            )
        return loss

    def matched(self) -> list[str]:
        """The outputs that are learned from the teacher."""
        return [name for name, kind in self.kinds.items() if kind is not Kind.NOTHING and self.weights[name] > 0]

    def __call__(
        self,
        student: Mapping[str, torch.Tensor],
        teacher: Mapping[str, torch.Tensor],
        targets: torch.Tensor | None,
        share: float = 1.0,
    ) -> torch.Tensor:
        """The mean loss over the batch; `share` of what the labels ask counts."""
        parts = [self.weights[name] * self._match(name, student[name], teacher[name]) for name in self.matched()]
        if targets is not None:
            parts.append(self.label(student, targets, share))
        return torch.stack(parts).sum()

    def label(self, student: Mapping[str, torch.Tensor], targets: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        """`share` of what the labels ask; zero where labels are not learned from."""
        first = next(iter(self.kinds))
        if not self.labels:
            return student[first].new_zeros(())
        return share * self.label_weight * self._label(self.label_kind, student[first], targets)

    def _match(self, name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        kind, t = self.kinds[name], self.temperature
        if kind in _CLASSES:
            axis = _axis(student)
            ours = functional.log_softmax(_logits(kind, student) / t, axis)
            theirs = functional.log_softmax(_logits(kind, teacher) / t, axis)
            places = student.numel() // student.shape[axis]
            return functional.kl_div(ours, theirs, reduction="sum", log_target=True) / places * t * t
        if kind is Kind.BINARY_LOGIT:
            soft = torch.sigmoid(teacher.flatten() / t)
            entropy = functional.binary_cross_entropy(soft, soft)
            return (functional.binary_cross_entropy_with_logits(student.flatten() / t, soft) - entropy) * t * t
        if kind is Kind.DIRECTION:
            return (1 - functional.cosine_similarity(student.float(), teacher.float(), -1)).mean()
        if kind is Kind.ABSOLUTE:
            return functional.l1_loss(student.float(), teacher.float()) / self.scales[name]
        return functional.mse_loss(student.float(), teacher.float()) / self.scales[name]

    def _label(self, kind: Kind, student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if kind in _CLASSES:
            return functional.cross_entropy(_logits(kind, student), targets.flatten().long())
        if kind is Kind.BINARY_LOGIT:
            return functional.binary_cross_entropy_with_logits(student.flatten(), targets.flatten().to(student.dtype))
        return functional.mse_loss(student.flatten(), targets.flatten().to(student.dtype)) / self.target_scale


def _logits(kind: Kind, output: torch.Tensor) -> torch.Tensor:
    return output.clamp_min(1e-7).log() if kind is Kind.PROBABILITIES else output
