"""What crosses the border to a compression child: a folder with `task.json` going in, `result.json` coming out.

    TASKDIR/task.json        a `Task`
    TASKDIR/in/...           what the task reads, by name
    TASKDIR/progress.json    the newest `TaskProgress`, replaced atomically
    TASKDIR/out/...          what the task made, by name
    TASKDIR/result.json      a `TaskResult`, written last and atomically: without it the task has not ended

`python -m fleetfit.compress.run TASKDIR` runs one task. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

# The activity of a task before it holds the host's lock: time that is not charged to it.
WAITING_FOR_HOST: Final = "waiting for this machine to be free"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# Results are read by a server that does not trust the child: a name leads nowhere but into `out/`.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Tensor(_Strict):
    """One input or output: NumPy's dtype name, and the shape with the batch first (-1: may vary)."""

    name: str
    dtype: str
    shape: list[int]


PartName = Literal["pre", "post"]
PARTS: Final[tuple[PartName, ...]] = ("pre", "post")


class IntakeModel(_Strict):
    """Check an uploaded model, and that its parts fit. Reads `model` and, where named, `pre` and `post`; makes nothing."""

    kind: Literal["intake_model"] = "intake_model"
    format: Literal["pt2", "onnx"]
    parts: list[PartName] = []
    """What stands before and behind the model and is never compressed: ONNX files."""


class IntakeData(_Strict):
    """Check and split uploaded arrays. Reads `data` (.npz) and, where given, `test`.

    Makes `train.npz`, `validation.npz`, `test.npz`.
    """

    kind: Literal["intake_data"] = "intake_data"
    inputs: list[Tensor] | None = None
    """The model's inputs, to compare with; None where no model was named."""
    outputs: list[Tensor] | None = None
    seed: int = 0
    metric: str = ""
    own_test: bool = False


class IntakeRecovered(_Strict):
    """Check a variant's network that its user trained. Reads `variant` and `trained` (.pt2).

    Makes `recovered.pt2`, the variant with the trained numbers.
    """

    kind: Literal["intake_recovered"] = "intake_recovered"


class Limits(_Strict):
    """What a build must hold to be of use to whom it is made for; None is no limit. Drops as in a job's limits."""

    max_drop_points: float | None = None
    max_drop_percent: float | None = None
    max_size_bytes: int | None = None

    def most_lost(self, original: float) -> float | None:
        """By how much the metric may be worse than `original`, in its units; None where that is not limited."""
        if self.max_drop_points is None and self.max_drop_percent is not None:
            return self.max_drop_percent / 100 * abs(original)
        return self.max_drop_points


class Recovered(_Strict):
    """A network that was made once by the steps of a recipe up to its last `quantize`, and then trained by its user.

    `variant` and `file` are digests: of the variant whose network it is, and of the file that its user pushed.
    """

    variant: str
    file: str
    lineage: list[Step]
    """What the recipe did to it before, without the original's line."""


class Compress(_Strict):
    """Run one recipe. Reads `model` and, where the recipe or a metric needs them, `train.npz` and `validation.npz`.

    With `recovered`, only what the recipe does to builds is done, to the network in `recovered.pt2`. Makes one file per build
    (`build.onnx`, `build.openvino`, `build.ncnn`), `variant.pt2` for trainable models.
    """

    kind: Literal["compress"] = "compress"
    format: Literal["pt2", "onnx"]
    recipe: str
    """Canonical recipe, YAML; empty for the model as it is."""
    task: Literal["classification", "multilabel", "regression", "detection", ""] = ""
    metric: str = ""
    seed: int = 0
    threads: int = 1
    runtimes: list[str] = ["onnxruntime"]
    """The runtimes to make builds for."""
    compute: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where passes that train do so; `auto` is CUDA where PyTorch has it."""
    limits: list[Limits] = []
    """Of those for whom it is made: once none of these can be met any more, it stops. They change nothing in what is made,
    so they are no part of a variant's key."""
    recovered: Recovered | None = None
    evidence: bool = False
    """Whether each build comes with what it gives here, to hold devices against; it changes nothing in what is made."""


class FindDevice(_Strict):
    """Find out whether training can compute on CUDA here: look for a device, and train on it. Reads and makes nothing."""

    kind: Literal["find_device"] = "find_device"


class Lower(_Strict):
    """Make a finished variant's build for another runtime than ONNX Runtime.

    Reads `model`, the variant as a layered `.pt2`, `build.onnx`, its build for ONNX Runtime, and, where they are there,
    `validation.npz` to compare outputs on and `original.onnx`, the original's build, for metrics that compare with it.
    """

    kind: Literal["lower"] = "lower"
    runtime: str
    threads: int = 1
    metric: str = ""
    evidence: bool = False


class Task(_Strict):
    """One task for a compression child."""

    task_id: str
    work: Annotated[
        IntakeModel | IntakeData | IntakeRecovered | Compress | FindDevice | Lower, Field(discriminator="kind")
    ]

    def wants_cuda(self) -> bool:
        """Whether it must be let through to CUDA devices, which no other task is."""
        return isinstance(self.work, FindDevice) or (isinstance(self.work, Compress) and self.work.compute != "cpu")


class TaskProgress(_Strict):
    """How far a task has come: an activity in plain words, a fraction between 0 and 1, expected seconds left."""

    activity: str
    fraction: float
    remaining_s: float | None = None


class Window(_Strict):
    """When the host's lock was held, in nanoseconds of the monotonic clock."""

    begin_monotonic_ns: int
    end_monotonic_ns: int


class Score(_Strict):
    """A metric's value with its 95 % interval, over `n` samples of `split`, computed with PyTorch on the server."""

    name: str
    value: float
    ci95: tuple[float, float]
    n: int
    split: str


class Step(_Strict):
    """One line of a lineage: what one pass did. The first line (`pass_name` `original`) is the model as it came."""

    pass_name: str
    parameters_of_pass: dict[str, Any]
    parameters: int
    macs: int
    """Multiply-accumulates for one sample."""
    weight_bytes: int
    metric: Score | None
    seconds: float
    training_steps: int = 0
    notes: list[str] = []


class Samples(_Strict):
    """A file in `out/`: inputs of a few samples, and what a build gave for them (`inputs/NAME`, `outputs/NAME`).

    `rounding` is how far outputs lie from the float model's, as a share of the largest; of the whole split where it was run.
    """

    file: FileName
    size_bytes: int
    sha256: str
    rounding: float


class Evidence(_Strict):
    """A file in `out/`: a build's outputs over the validation split in its runtime here (`outputs`), the metric's `scores`.

    Without `scored` there are outputs alone: the metric compares with the original, which was not there.
    """

    file: FileName
    size_bytes: int
    sha256: str
    metric: str
    scored: bool
    runtime_version: str


class Build(_Strict):
    """A file in `out/` that a runtime loads."""

    file: FileName
    runtime: str
    format: str
    size_bytes: int
    sha256: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    integer_operators: int = 0
    """Operators that became integer ones; 0 for float builds."""
    total_operators: int = 0
    largest_difference: float | None = None
    """Largest absolute difference between this build's outputs in its runtime and PyTorch's, on real inputs."""
    samples: Samples | None = None
    evidence: Evidence | None = None

    def files(self) -> list[Build | Samples | Evidence]:
        """Itself and what lies beside it in `out/`."""
        return [self, *(one for one in (self.samples, self.evidence) if one is not None)]


class Trainable(_Strict):
    """The float network with its layers in `out/`, as `load_pt2` reads it: before a last `quantize`."""

    file: FileName
    size_bytes: int
    sha256: str


class ModelPart(_Strict):
    """What intake found in a part that stands before or behind a model."""

    inputs: list[Tensor]
    outputs: list[Tensor]


class ModelFacts(_Strict):
    """What intake found in a model."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: int
    macs: int
    recognised_share: float
    trainable: bool
    notes: list[str] = []
    parts: dict[PartName, ModelPart] = {}


class SplitFile(_Strict):
    """One split in `out/`."""

    name: Literal["train", "validation", "test"]
    file: FileName
    count: int


class DataFacts(_Strict):
    """What intake found in a dataset."""

    inputs: list[Tensor]
    targets: Tensor | None
    task: Literal["classification", "multilabel", "regression", "detection", ""]
    classes: int = 0
    metric: str
    splits: list[SplitFile]
    notes: list[str] = []


class RecoveredFacts(_Strict):
    """What intake found in a variant's trained network: that it is the variant's, and how many of its tensors changed."""

    network: Trainable
    parameters: int
    tensors: int
    changed: int
    notes: list[str] = []


class CompressFacts(_Strict):
    """What a recipe made."""

    lineage: list[Step]
    builds: list[Build]
    parameters: int
    macs: int
    environment: dict[str, str]
    """Versions, instruction set, threads: the numeric environment."""
    notes: list[str] = []
    trainable: Trainable | None = None
    """None for ONNX files, which have no layers, and for what an older version made."""


class CudaDevice(_Strict):
    """A CUDA device, and the versions of all that computes on it."""

    name: str
    capability: str
    cuda: str
    cudnn: str
    driver: str
    memory_bytes: int

    def described(self) -> str:
        """In words, with everything that results depend on."""
        return f"cuda ({self.name}, capability {self.capability}, CUDA {self.cuda}, cuDNN {self.cudnn}, driver {self.driver})"


class TaskError(_Strict):
    """Why a task failed: an error's code (fleetfit.core.errors), its public sentence, and the private part."""

    code: str
    message: str
    field: str = ""
    private: str = ""


class Stopped(_Strict):
    """Why compression stopped early: a reason for each of the task's limits, in their order."""

    reasons: list[str]


class TaskResult(_Strict):
    """How a task ended: exactly one of `model`, `data`, `recovered`, `compress`, `device`, `build`, `stopped`, `error` is set."""

    task_id: str
    model: ModelFacts | None = None
    data: DataFacts | None = None
    recovered: RecoveredFacts | None = None
    compress: CompressFacts | None = None
    device: CudaDevice | None = None
    build: Build | None = None
    stopped: Stopped | None = None
    error: TaskError | None = None
    held: list[Window] = []
    confinement: list[str] = []
    """What really confined the child, for example `landlock`, `seccomp`, `rlimits`."""
