"""Activation pruning: neurons and channels that are hardly active are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fleetfit.compress.passes.base import Needs, PassContext, PassReport
from fleetfit.compress.passes.structured import StructuredPass

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class ActivationPruning(StructuredPass):
    """Remove neurons (channels) that are hardly active over the training split.

    `criterion` `mean_absolute` (where none is given) goes by the mean absolute activation, `zeros` by the share of activations
    that are not zero, which says something where the nonlinearity is a ReLU.

    Every weight that feeds a removed neuron or reads it goes with it. Give `threshold` (in units of the activation, or a share:
    what lies below goes), `ratio` (this share goes) or `budget` `{macs: SHARE}`. `scope` `layer` takes the ratio in each layer,
    `global` ranks all neurons together after dividing each layer's scores by their mean. `layers` limits it to one kind of
    layer.
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})
    version: ClassVar[int] = 2
    amounts: ClassVar = ("threshold", "ratio", "budget")

    criterion: Literal["mean_absolute", "zeros"] | None = None
    threshold: float | None = Field(default=None, gt=0)
    samples: int = Field(default=2048, ge=8)
    """Training samples to look at, at most."""

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Remove the neurons."""
        from fleetfit.compress.pruning.activations import prune_by_activation

        return prune_by_activation(model, self, context)
