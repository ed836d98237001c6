"""Passes that remove whole neurons and channels, the least important ones first: what they have in common."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from fleetfit.compress.passes.base import Stage
from fleetfit.compress.passes.layerwise import RoundedPass


class Budget(BaseModel):
    """How much is to be saved in the model as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    macs: float = Field(gt=0, lt=1)
    """The share of the multiply-accumulates that goes."""
    scan: bool = False
    """Cut each layer alone first, by several ratios, and measure what that does to the outputs (on the validation split,
    where there is one): layers that hardly matter for their MACs are then cut most."""


class StructuredPass(RoundedPass):
    """A pass that gives every unit a score and removes those with the smallest.

    A subclass names in `amounts` which of its parameters say how much goes.
    """

    stage: ClassVar = Stage.PRUNE
    amounts: ClassVar[tuple[str, ...]] = ("ratio", "budget")
    per_layer: ClassVar[tuple[str, ...]] = ("round_to",)

    ratio: float | None = Field(default=None, gt=0, lt=1)
    """The share of what is there that goes; given again and again it composes."""
    budget: Budget | None = None
    """Instead of an amount in units: the least important go, of all layers, until so much is saved in the whole model."""
    scope: Literal["layer", "global"] = "layer"
    layers: Literal["all", "linear", "convolution"] = "all"

    @model_validator(mode="after")
    def _a_budget_is_global(self) -> Self:
        if self.budget is not None and self.scope != "global":
            raise ValueError("'budget' weighs layers against each other; give 'scope: global' with it")
        return self

    def overridable(self) -> tuple[str, ...]:
        """Layers that are ranked together have one amount together."""
        if self.scope == "global" and (self.ratio is not None or self.budget is not None):
            return self.per_layer
        return (*(name for name in self.amounts if name != "budget"), *self.per_layer)
