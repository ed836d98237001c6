"""Quantization-aware training: the model learns with its numbers rounded as the build will round them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fleetfit.compress.passes.base import MOST_EPOCHS, Needs, Pass, PassContext, PassReport

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class QuantizeAwareTraining(Pass):
    """Train with fake quantization on the original's outputs, so that a static int8 `quantize` after it loses less.

    Weights of convolutions and linear layers are rounded to `bits` bits, symmetric, each output channel with a scale of its
    own; what those layers read is rounded to 8 bits within ranges that follow the data. Gradients pass the rounding as if it
    were not there (straight-through estimator). The loss, the schedule and what is kept are those of `distill`, judged with
    everything rounded. Follow it with `quantize`; alone it changes no file's size.
    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference" (2018).
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA, Needs.TRAINING})

    epochs: float = Field(default=2.0, gt=0, le=MOST_EPOCHS)
    """How long it trains."""
    bits: int = Field(default=7, ge=2, le=8)
    """For weights: 7 is what `quantize` makes with `reduce_range`, 8 without."""
    temperature: float = Field(default=4.0, gt=0)
    """How far classifications are softened; see `distill`."""
    label_weight: float = Field(default=0.5, ge=0)
    """How much the labels count, where there are any."""
    learning_rate: float = Field(default=3e-4, gt=0, lt=1)
    """The highest; smaller than that of `distill`: the weights are to move by parts of a step of their rounding."""
    batch: int = Field(default=128, ge=2)
    """Samples of a training step."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many of the ten or so looks at the validation split without an improvement."""
    samples: int | None = Field(default=None, ge=8)
    """Training samples to use; all where not given."""
    calibration_samples: int = Field(default=256, ge=1)
    """Training samples that the ranges are first read from, at most."""

    def training_effort(self, count: int) -> float:
        """Epochs times the samples of each."""
        return self.epochs * min(count, count if self.samples is None else self.samples)

    def least_share(self) -> float:
        """No weight goes."""
        return 1.0

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Train."""
        from fleetfit.compress.training.fake_quantization import train_quantized

        return train_quantized(model, self, context)
