"""Taylor pruning: neurons and channels that the loss would hardly miss are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fleetfit.compress.passes.base import Needs, PassContext, PassReport
from fleetfit.compress.passes.layerwise import LayerwisePass

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class TaylorPruning(LayerwisePass):
    """Remove neurons (channels) whose removal would change the loss least, to first order.

    What counts is the square of activation times gradient, summed over places and averaged over samples. The loss is the
    distance from the original's outputs and, where there are labels, from these. `ratio` is the share of the neurons that goes:
    in each layer, or with `scope` `global` of all together, whose changes of the loss compare as they are. `layers` limits it to
    one kind of layer.
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})
    per_layer: ClassVar = ("ratio", "round_to")

    ratio: float = Field(gt=0, lt=1)
    scope: Literal["layer", "global"] = "layer"
    layers: Literal["all", "linear", "convolution"] = "all"
    round_to: int = Field(default=1, ge=1, le=64)
    """Widths that remain are rounded up to a multiple of this."""
    samples: int = Field(default=1024, ge=8)
    """Training samples to look at, at most."""

    def overridable(self) -> tuple[str, ...]:
        """Layers that are ranked together have one ratio together."""
        return ("round_to",) if self.scope == "global" else super().overridable()

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Remove the neurons."""
        from fleetfit.compress.structure.taylor import prune_by_taylor

        return prune_by_taylor(model, self, context)
