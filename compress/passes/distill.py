"""Knowledge distillation: the model as it came teaches what is left of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fleetfit.compress.passes.base import MOST_EPOCHS, Needs, Pass, PassContext, PassReport, Stage

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel

_EPOCHS = 3.0
_LONGEST_S = 7 * 24 * 3600.0


class OutputLoss(BaseModel):
    """How one output is learned from the original's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    loss: Literal["auto", "kl", "mse", "l1", "cosine", "none"] = "auto"
    """KL divergence of softened outputs, squared or absolute difference, one minus the cosine, or not at all."""
    weight: float = Field(default=1.0, ge=0)


class Distill(Pass):
    """Train the model on the original's outputs, and on the labels where there are any.

    For classifications the loss is the KL divergence between outputs softened by `temperature` (times its square), plus
    `label_weight` times the cross entropy; for everything else the squared difference of outputs, relative to their
    variance. `outputs` chooses otherwise. With `features`, layers inside are matched too. AdamW with a cosine schedule over
    `epochs`, `steps` or `seconds`; the state that is best on the validation split is kept.
    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network" (2015).
    """

    needs: ClassVar = frozenset({Needs.LAYERS, Needs.DATA, Needs.TRAINING})
    stage: ClassVar = Stage.RECOVER
    version: ClassVar = 3

    epochs: float | None = Field(default=None, gt=0, le=MOST_EPOCHS)
    """How long it trains: 3 where none of `epochs`, `steps` and `seconds` is given."""
    steps: int | None = Field(default=None, ge=1)
    """The same in optimizer steps. Beside `seconds`: what they once became, so they are not measured again."""
    seconds: float | None = Field(default=None, gt=0, le=_LONGEST_S)
    """The same in seconds: the time of a step is measured first, and the number of steps that fit is kept in the lineage."""
    least_epochs: float | None = Field(default=None, gt=0, le=MOST_EPOCHS)
    """With `seconds`: at least so many epochs, also if they take longer."""
    outputs: dict[str, OutputLoss] = Field(default_factory=dict)
    """Losses by the outputs' names; chosen by the declared task and the output's shape where not given."""
    features: tuple[str, ...] | Literal["auto"] | None = Field(default=None, min_length=1)
    """Layers of the original, by name or pattern, whose outputs are matched; "auto" for the last of each stage."""
    feature_weight: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=4.0, gt=0)
    label_weight: float = Field(default=0.5, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """The share of steps in which the learning rate rises linearly."""
    clip: float | None = Field(default=None, gt=0)
    """The greatest norm of all gradients together; longer ones are shortened to it."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Judge and keep the exponential moving average of the weights, with this decay."""
    augment: tuple[Literal["flip", "shift", "cutout", "mixup"], ...] = ()
    """Change pictures at random, in this order; the original then answers anew for each."""
    batch: int = Field(default=128, ge=2)
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many of the ten or so looks at the validation split without an improvement."""
    samples: int | None = Field(default=None, ge=8)
    """Training samples to use; all where not given."""

    @model_validator(mode="before")
    @classmethod
    def _some_budget(cls, given: Any) -> Any:
        if isinstance(given, dict) and all(given.get(name) is None for name in ("epochs", "steps", "seconds")):
            return {**given, "epochs": _EPOCHS}
        return given

    @field_validator("features", mode="before")
    @classmethod
    def _one_pattern(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) and given != "auto" else given

    @model_validator(mode="after")
    def _one_budget(self) -> Distill:
        if self.epochs is not None and (self.steps is not None or self.seconds is not None):
            raise ValueError("give one of 'epochs', 'steps' and 'seconds'")
        if self.least_epochs is not None and self.seconds is None:
            raise ValueError("'least_epochs' goes with 'seconds'")
        if len(set(self.augment)) < len(self.augment):
            raise ValueError("name each of 'augment' once")
        return self

    def training_effort(self, count: int) -> float:
        """Epochs times the samples of each; steps count as epochs too. What `seconds` will become is not known."""
        used = min(count, count if self.samples is None else self.samples)
        if self.steps is not None:
            return self.steps / max(1, used // self.batch) * used
        return (self.epochs or self.least_epochs or 0.0) * used

    def training_seconds(self) -> float:
        """The seconds, where they have not become steps yet."""
        return self.seconds if self.seconds is not None and self.steps is None else 0.0

    def least_share(self) -> float:
        """No weight goes."""
        return 1.0

    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Train."""
        from fleetfit.compress.training.distillation import distill

        return distill(model, self, context)
