"""Taylor pruning: neurons and channels that the loss would hardly miss are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fleetfit.compress.passes.base import Needs, PassContext, PassReport
from fleetfit.compress.passes.structured import StructuredPass

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class TaylorPruning(StructuredPass):
    """Remove neurons (channels) whose removal would change the loss least, to first order.

    What counts is the square of activation times gradient, summed over places and averaged over samples. The loss is the
    distance from the original's outputs and, where there are labels, from these. Give `ratio`, the share of the neurons that
    goes, in each layer, or with `scope` `global` of all together, whose changes of the loss compare as they are; or `budget`
    `{macs: SHARE}`. `layers` limits it to one kind of layer.
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})

    samples: int = Field(default=1024, ge=8)
    """Training samples to look at, at most."""

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Remove the neurons."""
        from fleetfit.compress.pruning.taylor import prune_by_taylor

        return prune_by_taylor(model, self, context)
