"""Low-rank factorization of linear layers and convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from fleetfit.compress.passes.base import Needs, PassContext, PassReport, Stage
from fleetfit.compress.passes.layerwise import RoundedPass

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class LowRank(RoundedPass):
    """Replace a linear layer by a product of two smaller ones, a convolution by a short chain, where that costs less.

    The factors are weighted by the covariance of what the layer reads or makes over the training split, so that the error
    counts where activations really lie. Exactly one of `energy`, `ratio`, `error`, `fewer_macs` and `fewer_parameters` says
    how far to go; the last two are shares of the whole model, and the ranks are allotted to the layers so that together they
    lose least.
    """

    version: ClassVar = 2
    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA})
    stage: ClassVar = Stage.FACTORIZE
    amounts: ClassVar = ("energy", "ratio", "error", "fewer_macs", "fewer_parameters")
    per_layer: ClassVar = ("method", "round_to", "least_saving")

    energy: float | None = Field(default=None, gt=0, lt=1)
    """The share of the variance of each layer's outputs that must remain."""
    ratio: float | None = Field(default=None, gt=0, lt=1)
    """Each rank as a share of the largest there can be."""
    error: float | None = Field(default=None, gt=0, lt=1)
    """The root mean square error of each layer's outputs that is allowed, as a share of their standard deviation: an error of
    0.1 is an energy of 0.99."""
    fewer_macs: float | None = Field(default=None, gt=0, lt=1)
    """The share of the model's multiply-accumulates to remove."""
    fewer_parameters: float | None = Field(default=None, gt=0, lt=1)
    """The share of the model's parameters to remove."""
    layers: Literal["all", "linear", "convolution"] = "linear"
    method: Literal["best", "tucker2", "spatial", "channel"] = "best"
    """How a convolution is split. `tucker2`: 1x1, a kxk core, 1x1. `spatial`: kx1, 1xk. `channel`: kxk with fewer outputs, 1x1.
    `best`: whichever does what is asked with the fewest multiply-accumulates. Convolutions of 1x1 are split by channel, and
    those of signals (1-d) never by `spatial`."""
    least_saving: float = Field(default=0.25, ge=0, lt=1)
    """A layer is split only where this share of its multiply-accumulates and of its bytes goes: two products instead of one
    have a price of their own, and cutting a narrow last layer (ten classes, rank eight) costs points for nothing."""
    samples: int = Field(default=2048, ge=8)
    """Training samples to look at, at most."""

    @model_validator(mode="after")
    def _ratio_names_a_method(self) -> LowRank:
        if self.ratio is not None and self.layers != "linear" and self.method == "best":
            raise ValueError("'ratio' cannot tell which 'method' is best; name one, or give 'energy'")
        return self

    def overridable(self) -> tuple[str, ...]:
        """A budget for the whole model leaves no layer an amount of its own."""
        if self.fewer_macs is not None or self.fewer_parameters is not None:
            return self.per_layer
        return ("energy", "ratio", "error", *self.per_layer)

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Split the layers."""
        from fleetfit.compress.factorization.layers import factorize_layers

        return factorize_layers(model, self, context)
