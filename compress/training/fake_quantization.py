"""Rounding inside a float model, as a quantized build rounds, and training with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from fleetfit.compress.compute import choose_device, placed
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import outputs_over, spread_rows
from fleetfit.compress.graph.kinds import CONVOLUTIONS, TRANSPOSED
from fleetfit.compress.passes.base import PassContext, PassReport
from fleetfit.compress.passes.distill import Distill
from fleetfit.compress.training.distillation import distill
from fleetfit.core.errors import InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.quantize_aware_training import QuantizeAwareTraining

_LAYERS: Final = (*CONVOLUTIONS, nn.Linear, *TRANSPOSED)
_LEVELS: Final = 255
# How much of a range each training batch leaves as it was.
_KEPT: Final = 0.99


def train_quantized(model: LayeredModel, settings: QuantizeAwareTraining, context: PassContext) -> PassReport:
    """Train `model` in place with fake quantization; the work of `QuantizeAwareTraining`.

    Batch norms need no folding for that: folded, they scale each output channel by one factor, and a scale per channel
    follows it. Raises InvalidRecipe where the model has no layer to round.
    """
    data = context.training_data("quantize_aware_training")
    if not any(isinstance(leaf, _LAYERS) for leaf in model.module.modules()):
        raise InvalidRecipe(
            "quantize_aware_training finds no convolution or linear layer in this model; leave the step out"
        )
    names = ("epochs", "temperature", "label_weight", "learning_rate", "batch", "patience", "samples")
    wanted = Distill.model_validate({name: getattr(settings, name) for name in names})
    # Ranges are read where they are used.
    with placed(model, choose_device(context.compute)), fake_quantized(model.module, settings.bits) as layers:
        outputs_over(model, spread_rows(data, settings.calibration_samples, context.seed))
        for layer in layers:
            layer.watching = False
        report = distill(model, wanted, context)
    report.notes.insert(
        0,
        f"trained with the weights of {len(layers)} layers rounded to {settings.bits} bits and what they read to 8; what follows "
        "is measured with that rounding",
    )
    return report


@contextmanager
def fake_quantized(module: nn.Module, bits: int) -> Iterator[list[FakeQuantized]]:
    """Round the weights of convolutions and linear layers, and what they read, as long as this lasts.

    Parameters stay what they are: full-precision floats that gradients reach. Ranges of activations are only watched until
    `watching` is set to False for a layer.
    """
    layers = [FakeQuantized(leaf, bits) for leaf in module.modules() if isinstance(leaf, _LAYERS)]
    try:
        yield layers
    finally:
        for layer in layers:
            layer.remove()


class FakeQuantized:
    """One layer with rounding around it."""

    def __init__(self, leaf: nn.Module, bits: int) -> None:
        self.bits, self.watching = bits, True
        self.low = self.high = torch.zeros(())
        self.seen = False
        self._leaf = leaf
        self._axis = 1 if isinstance(leaf, TRANSPOSED) else 0
        # A weight set on the layer itself hides the parameter of that name while the layer computes.
        self._handles = [
            leaf.register_forward_pre_hook(self._before),
            leaf.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Leave the layer as it was."""
        for handle in self._handles:
            handle.remove()
        self._leaf.__dict__.pop("weight", None)

    def _before(self, leaf: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        values = inputs[0]
        if self.watching or leaf.training:
            self._watch(values.detach())
        if self.watching:
            return inputs
        weight = leaf._parameters["weight"]
        assert weight is not None  # noqa: S101 - every such layer has one
        leaf.__dict__["weight"] = round_weight(weight, self.bits, self._axis)
        return (round_activation(values, self.low, self.high), *inputs[1:])

    def _after(self, leaf: nn.Module, inputs: Any, output: Any) -> None:
        leaf.__dict__.pop("weight", None)

    def _watch(self, values: torch.Tensor) -> None:
        # Zero is always in the range: padding is zeros.
        low, high = values.min().clamp(max=0.0), values.max().clamp(min=0.0)
        if not self.seen:
            self.low, self.high, self.seen = low, high, True
        elif self.watching:
            self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        else:
            self.low, self.high = self.low.lerp(low, 1 - _KEPT), self.high.lerp(high, 1 - _KEPT)


def round_weight(weight: torch.Tensor, bits: int, axis: int = 0) -> torch.Tensor:
    """The weight on a symmetric grid of `bits` bits for each channel of `axis`; gradients pass unchanged."""
    others = [at for at in range(weight.dim()) if at != axis]
    # The ends that ONNX Runtime uses: both of the reduced range, and 127 of 8 bits.
    largest = 2 ** (bits - 1) if bits < 8 else 127
    scale = (
        weight.detach().abs().amax(others, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny * largest) / largest
    )
    rounded = (weight.detach() / scale).round().clamp(-largest, largest) * scale
    return weight + (rounded - weight.detach())


def round_activation(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Values on the 256 levels between `low` and `high`, zero among them; gradients stop where values are clipped."""
    scale = ((high - low) / _LEVELS).clamp_min(torch.finfo(values.dtype).tiny)
    zero = (-low / scale).round()
    clipped = torch.minimum(torch.maximum(values, -zero * scale), (_LEVELS - zero) * scale)
    rounded = (clipped.detach() / scale).round() * scale
    return clipped + (rounded - clipped.detach())
