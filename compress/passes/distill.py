"""Knowledge distillation: the model as it came teaches what is left of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fleetfit.compress.passes.base import MOST_EPOCHS, Needs, Pass, PassContext, PassReport, Stage

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class Distill(Pass):
    """Train the model on the original's outputs, and on the labels where there are any.

    For classifications the loss is the KL divergence between outputs softened by `temperature` (times its square), plus
    `label_weight` times the cross entropy; for everything else the squared difference of outputs, relative to their
    variance. AdamW with a cosine schedule over `epochs`; the state that is best on the validation split is kept.
    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network" (2015).
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA, Needs.TRAINING})
    stage: ClassVar = Stage.RECOVER

    epochs: float = Field(default=3.0, gt=0, le=MOST_EPOCHS)
    temperature: float = Field(default=4.0, gt=0)
    label_weight: float = Field(default=0.5, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch: int = Field(default=128, ge=2)
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many of the ten or so looks at the validation split without an improvement."""
    samples: int | None = Field(default=None, ge=8)
    """Training samples to use; all where not given."""

    def training_effort(self, count: int) -> float:
        """Epochs times the samples of each."""
        return self.epochs * min(count, count if self.samples is None else self.samples)

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Train."""
        from fleetfit.compress.structure.distillation import distill

        return distill(model, self, context)
