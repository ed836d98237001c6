"""Low-rank factorization of linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from fleetfit.compress.passes.base import Needs, Pass, PassContext, PassReport, Stage

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class LowRank(Pass):
    """Replace a linear layer by a product of two smaller ones where the product costs less.

    The SVD is weighted by the covariance of the layer's inputs over the training split, so that the error counts where
    inputs really lie. Give `energy` (the share of the outputs' variance that must remain) or `ratio` (the rank as a share of
    the smaller side).
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})
    stage: ClassVar = Stage.FACTORIZE

    energy: float | None = Field(default=None, gt=0, lt=1)
    ratio: float | None = Field(default=None, gt=0, lt=1)
    round_to: int = Field(default=1, ge=1, le=64)
    """Ranks are rounded up to a multiple of this."""
    least_saving: float = Field(default=0.25, ge=0, lt=1)
    """A layer is split only where this share of its weights goes: two products instead of one have a price of their own, and
    cutting a narrow last layer (ten classes, rank eight) costs points for nothing."""
    samples: int = Field(default=2048, ge=8)
    """Training samples to look at, at most."""

    @model_validator(mode="after")
    def _one_of_two(self) -> LowRank:
        if (self.energy is None) == (self.ratio is None):
            raise ValueError("give either 'energy' or 'ratio'")
        return self

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Split the layers."""
        from fleetfit.compress.structure.factorize import factorize_linear_layers

        return factorize_linear_layers(model, self, context)
