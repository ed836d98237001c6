"""What a pass is. Imports neither torch nor numpy: declarations are read where nothing is computed."""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from fleetfit.compress.registry import name_of
from fleetfit.core.errors import InvalidRecipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fleetfit.compress.graph import LayeredModel


MOST_EPOCHS: Final = 1000.0
"""No pass trains longer."""


class Needs(enum.Enum):
    """What a pass must be given."""

    LAYERS = "layers"
    """A model whose layers can be changed; an uploaded ONNX file has none."""
    DATA = "data"
    """Inputs of the training split."""
    TRAINING = "training"
    """Inputs of the training and validation splits, and permission to train: the job then makes a control."""


class Stage(enum.Enum):
    """What a pass does to a model, for the rules about the order of passes."""

    PRUNE = "prune"
    FACTORIZE = "factorize"
    RECOVER = "recover"
    QUANTIZE = "quantize"
    OTHER = "other"


@dataclass(frozen=True)
class Arrays:
    """One split: inputs by name, each with the samples first, and targets where there are any."""

    inputs: dict[str, NDArray[Any]]
    targets: NDArray[Any] | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def head(self, count: int) -> Arrays:
        """The first samples."""
        targets = None if self.targets is None else self.targets[:count]
        return Arrays({name: values[:count] for name, values in self.inputs.items()}, targets)


@dataclass
class PassContext:
    """What a pass works with besides the model.

    `report(fraction, activity)` tells the progress of this pass; it may raise to stop it. `teacher` is the model as it
    came (None for an ONNX file, which no pass that needs layers meets). `metric` and `task` are those of the dataset, empty
    where there are no targets.
    """

    train: Arrays | None
    validation: Arrays | None
    teacher: LayeredModel | None
    metric: str
    task: str
    seed: int
    report: Callable[[float, str], None]
    environment: dict[str, str] = field(default_factory=dict)
    compute: str = "cpu"
    """Where passes that train do so: `cpu` or `cuda`. They leave the model on the processor."""

    def training_data(self, asking: str) -> Arrays:
        """The training split. Raises InvalidRecipe where the job has no dataset."""
        if self.train is None:
            raise InvalidRecipe(f"{asking} needs data; name a dataset with --data")
        return self.train


@dataclass
class PassReport:
    """What a pass did: notes for the reader of the lineage, and how many training steps it took."""

    notes: list[str] = field(default_factory=list)
    training_steps: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters that the pass found by measuring; with them the same recipe gives the same model again."""


@dataclass
class QuantizedBuild:
    """A build that a pass made itself instead of the exporter: ONNX bytes, what became integer in it, and notes on it."""

    content: bytes
    integer_operators: int
    total_operators: int
    notes: list[str] = field(default_factory=list)


class Pass(BaseModel):
    """One compression step: its parameters are its fields, unknown ones are refused.

    A subclass says what it `needs` and does its work in `apply`, which

    - changes `model` in place, and leaves inputs and outputs (names, dtypes, shapes) as they were;
    - is deterministic for the same model, data and `context.seed`, and leaves global random state alone;
    - imports torch and numpy inside, never at the module's head;
    - raises InvalidRecipe where its parameters cannot be met by this model, saying what could be.

    A pass that works on the built ONNX file instead (`must_be_last`) overrides `build`. `version` grows whenever the same
    parameters would give another result, so that stored variants are not taken for new ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    needs: ClassVar[frozenset[Needs]] = frozenset()
    version: ClassVar[int] = 1
    stage: ClassVar[Stage] = Stage.OTHER
    must_be_last: ClassVar[bool] = False

    @abstractmethod
    def apply(self, model: LayeredModel, context: PassContext) -> PassReport:
        """Change `model` in place and say what was done."""

    def build(self, onnx: bytes, context: PassContext) -> QuantizedBuild | None:
        """A build of its own from the exported ONNX file; None for passes that change layers."""
        return None

    def wants(self) -> frozenset[Needs]:
        """What this step really needs with these parameters; all of `needs` unless a pass knows better."""
        return self.needs

    def training_effort(self, count: int) -> float:
        """On how many samples this pass trains in all, repeated ones counted, where the split has `count`; 0 for none."""
        return 0.0

    def training_seconds(self) -> float:
        """The budget in seconds of a step whose training effort is not known beforehand; 0 for none."""
        return 0.0

    def least_share(self) -> float:
        """The share of the bytes of 32-bit float weights that a build has at least after this step.

        1 where it makes none smaller, a quarter where they become 8 bits; 0, which is always right, where that is not known.
        """
        return 0.0

    def numbers(self) -> str:
        """What the build computes with after a pass that works on the built file, such as `int8-static`; else empty."""
        return ""

    def fitted(self, round_to: int) -> Self:
        """The step for a device whose kernels like widths in multiples of `round_to`; itself where no width changes."""
        return self

    @classmethod
    def pass_name(cls) -> str:
        """The name used in recipes."""
        return name_of(cls)

    def parameters(self) -> dict[str, Any]:
        """The parameters that were set, as they stand in a recipe."""
        return self.model_dump(mode="json", exclude_none=True)
