"""Batch norm re-estimation: the cheapest first step of recovery."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fleetfit.compress.passes.base import Needs, Pass, PassContext, PassReport, Stage

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class ReestimateNorms(Pass):
    """Give all batch norms the statistics that fit the model as it is now; no weight is trained.

    After pruning, factorization or any other change of weights, batch norms still hold the statistics of the model as it was.
    They are moved by what the inputs of each differ from the original's on the same samples, so that what is normalised has
    the mean and variance that it had; where nothing changed, nothing moves, whatever the samples are. With `measured` they
    are those of the samples. Each batch norm is treated with those before it already corrected.
    Source: of `measured`, Wu, Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3; the rest is ours.
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})
    stage: ClassVar = Stage.RECOVER
    version: ClassVar = 2

    statistics: Literal["moved", "measured"] = "moved"
    """The original's, moved as what comes in has moved; or `measured` on the training split alone, which must then be like what
    the model was trained on."""
    samples: int = Field(default=2048, ge=2)
    """Training samples to look at, at most; fewer where their activations would not fit into memory."""

    def least_share(self) -> float:
        """No weight goes."""
        return 1.0

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Measure, and move."""
        from fleetfit.compress.training.norms import reestimate_norms

        return reestimate_norms(model, self, context)
