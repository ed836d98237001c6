"""What a student is trained on: the teacher's outputs, each by its kind, and the labels where there are any."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional


class Kind(enum.Enum):
    """What an output is."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    BINARY_LOGIT = "binary logit"
    VALUES = "values"


def kind_of(output: torch.Tensor, *, classifies: bool) -> Kind:
    """What the teacher's output over many samples is. `classifies`: it is the output that classes are read from."""
    if not classifies:
        return Kind.VALUES
    if output.dim() == 1 or output.shape[-1] == 1:
        return Kind.BINARY_LOGIT
    if output.dim() != 2:
        return Kind.VALUES
    sums = output.sum(-1)
    # A softmax that is part of the model: its logarithm serves as logits (all softmax inputs that differ by a constant do).
    if float(output.min()) >= 0 and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3)):
        return Kind.PROBABILITIES
    return Kind.LOGITS


@dataclass
class DistillationLoss:
    """The loss of a batch.

    Logits: KL divergence of the outputs softened by `temperature`, times its square (so that the gradient's size does not
    depend on it), plus `label_weight` times the cross entropy. All else: mean squared difference over the variance of the
    teacher's output, plus `label_weight` times the same against the targets (over their variance) for the first output.
    """

    kinds: dict[str, Kind]
    scales: dict[str, float]
    """Variance of each output that is not logits."""
    temperature: float
    label_weight: float
    labels: bool
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
    ) -> DistillationLoss:
        """The loss for a teacher with these outputs over the training split, and these targets of it."""
        first = next(iter(teacher))
        kinds = {
            name: kind_of(value, classifies=task == "classification" and name == first)
            for name, value in teacher.items()
        }
        scales = {name: float(value.double().var(unbiased=False).clamp_min(1e-12)) for name, value in teacher.items()}
        labels = targets is not None and label_weight > 0
        scale = 1.0
        if targets is not None and task != "classification":
            labels = labels and targets.numel() == teacher[first].numel()
            scale = float(targets.double().var(unbiased=False).clamp_min(1e-12))
        elif kinds[first] is Kind.VALUES:
            labels = False
        return cls(kinds, scales, temperature, label_weight, labels, scale)

    def __call__(
        self,
        student: Mapping[str, torch.Tensor],
        teacher: Mapping[str, torch.Tensor],
        targets: torch.Tensor | None,
        share: float = 1.0,
    ) -> torch.Tensor:
        """The mean loss over the batch; `share` of what the labels ask counts."""
        parts = [self._match(name, student[name], teacher[name]) for name in self.kinds]
        if targets is not None:
            parts.append(self.label(student, targets, share))
        return torch.stack(parts).sum()

    def label(self, student: Mapping[str, torch.Tensor], targets: torch.Tensor, share: float = 1.0) -> torch.Tensor:
        """`share` of what the labels ask; zero where labels are not learned from."""
        first = next(iter(self.kinds))
        if not self.labels:
            return student[first].new_zeros(())
        return share * self.label_weight * self._label(self.kinds[first], student[first], targets)

    def _match(self, name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        kind, t = self.kinds[name], self.temperature
        if kind in (Kind.LOGITS, Kind.PROBABILITIES):
            ours = functional.log_softmax(_logits(kind, student) / t, -1)
            theirs = functional.log_softmax(_logits(kind, teacher) / t, -1)
            return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * t * t
        if kind is Kind.BINARY_LOGIT:
            soft = torch.sigmoid(teacher.flatten() / t)
            entropy = functional.binary_cross_entropy(soft, soft)
            return (functional.binary_cross_entropy_with_logits(student.flatten() / t, soft) - entropy) * t * t
        return functional.mse_loss(student.float(), teacher.float()) / self.scales[name]

    def _label(self, kind: Kind, student: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if kind in (Kind.LOGITS, Kind.PROBABILITIES):
            return functional.cross_entropy(_logits(kind, student), targets.flatten().long())
        if kind is Kind.BINARY_LOGIT:
            return functional.binary_cross_entropy_with_logits(student.flatten(), targets.flatten().to(student.dtype))
        return functional.mse_loss(student.flatten(), targets.flatten().to(student.dtype)) / self.target_scale


def _logits(kind: Kind, output: torch.Tensor) -> torch.Tensor:
    return output.clamp_min(1e-7).log() if kind is Kind.PROBABILITIES else output
