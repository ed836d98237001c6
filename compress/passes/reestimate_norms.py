"""Batch norm re-estimation: the cheapest first step of recovery."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fleetfit.compress.passes.base import Needs, Pass, PassContext, PassReport, Stage

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class ReestimateNorms(Pass):
    """Measure the means and variances of all batch norms anew on the training split; no weight is trained.

    After pruning, factorization or any other change of weights, batch norms still hold the statistics of the model as it was.
    Each is measured with those before it already corrected, so they are what the model really meets when it is used.
    Source: Wu, Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3; the order from the first to the last is ours.
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})
    stage: ClassVar = Stage.RECOVER

    samples: int = Field(default=2048, ge=2)
    """Training samples to look at, at most; fewer where their activations would not fit into memory."""

    def least_share(self) -> float:
        """No weight goes."""
        return 1.0

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Measure, and store."""
        from fleetfit.compress.training.norms import reestimate_norms

        return reestimate_norms(model, self, context)
