"""Redundancy pruning: neurons and channels that the others can stand in for are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fleetfit.compress.passes.base import Needs, PassContext, PassReport, Stage
from fleetfit.compress.passes.layerwise import RoundedPass

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class RedundancyPruning(RoundedPass):
    """Remove neurons (channels) whose activations are nearly linear functions of others', and let those take their part.

    In each layer the neurons to keep are chosen by pivoted Cholesky (column-pivoted QR of the activations, each weighted by
    the norm of the weights that read it). Ridge least squares then folds each removed neuron into the weights that read those
    kept, and its mean into the bias, so the function changes as little as possible: little or no retraining is needed. Give
    `energy` (the share of the weighted variance that those kept must explain) or `ratio` (this share of the neurons goes).
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})
    version: ClassVar[int] = 2
    stage: ClassVar = Stage.PRUNE
    amounts: ClassVar = ("energy", "ratio")
    per_layer: ClassVar = ("ridge", "round_to")

    energy: float | None = Field(default=None, gt=0, lt=1)
    ratio: float | None = Field(default=None, gt=0, lt=1)
    layers: Literal["all", "linear", "convolution"] = "all"
    ridge: float = Field(default=1e-8, ge=0, le=1)
    """Ridge of the least squares, in units of the mean variance of the neurons kept."""
    samples: int = Field(default=2048, ge=8)
    """Training samples to look at, at most."""

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Remove the neurons and fold them into those kept."""
        from fleetfit.compress.pruning.redundancy import prune_by_redundancy

        return prune_by_redundancy(model, self, context)
