"""Check of a dataset against a model, and its three splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from fleetfit.compress.intake.arrays import Array, read_arrays
from fleetfit.compress.intake.boxes import check_boxes
from fleetfit.compress.intake.splits import split_at_random, split_by_group
from fleetfit.compress.tasks import DataFacts, IntakeData, SplitFile, Tensor
from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import (
    CLASSIFICATION,
    DEFAULT_METRIC,
    DETECTION,
    METRIC_NAMES,
    MULTILABEL,
    REGRESSION,
    MetricInfo,
    known_metric,
)

TARGETS = "targets"
GROUPS = "groups"
_MINIMUM = 10
_CHUNK = 1 << 22


@dataclass
class _Dataset:
    """The arrays of one file, checked."""

    inputs: dict[str, Array]
    targets: Array | None
    groups: Array | None
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(next(iter(self.inputs.values())))


def check_and_split(data: Path, test: Path | None, work: IntakeData, out: Path) -> DataFacts:
    """Check the arrays and write `train.npz`, `validation.npz` and `test.npz` to `out`, in their stored dtype.

    Args:
        data: The `.npz`: one array for each input of the model, `targets`, and perhaps `groups` (one label per sample; samples
            of one group stay in one split).
        test: The user's own test file, which is then the test split as it is.
        work: The model's inputs and outputs, the metric, the seed.
        out: The folder for the splits; made if missing.

    Raises:
        InvalidData: The arrays are damaged, or do not fit the model or each other.
    """
    dataset = _load(data, "The data file", work)
    own = _load(test, "The test file", work) if test is not None else None
    if len(dataset.inputs) and dataset.count < _MINIMUM:
        raise InvalidData(
            f"The data file holds {dataset.count} samples; give at least {_MINIMUM}, better some thousands."
        )
    if own is not None:
        _agree(dataset, own)
    task, metric = _task(dataset, work)
    notes = list(dataset.notes)
    classes = 0
    for part, what in ((dataset, "The data file"), (own, "The test file")):
        if part is not None and task == "classification":
            classes = max(classes, _check_labels(part, what, work, metric, notes))
        elif part is not None and task == "multilabel":
            classes = _check_zeros_and_ones(part, what, work, metric, notes)
        elif part is not None and task == "detection":
            classes = max(classes, check_boxes(part.targets, what, work.outputs, metric))
        elif part is not None and task == "regression":
            _check_values(part, what, work, notes)
    if dataset.groups is not None:
        splits = split_by_group(dataset.groups, work.seed, test=own is None)
        notes.append("Samples of one group stay in one split.")
    else:
        one_each = task == "classification" or (
            task == "multilabel" and dataset.targets is not None and dataset.targets.ndim == 1
        )
        labels = dataset.targets if one_each else None
        splits = split_at_random(dataset.count, work.seed, test=own is None, labels=labels)
    out.mkdir(parents=True, exist_ok=True)
    files = [
        _write(out, "train", _take(dataset, splits.train)),
        _write(out, "validation", _take(dataset, splits.validation)),
        _write(out, "test", _take(dataset, splits.test) if own is None else own),
    ]
    described = [_describe(name, array) for name, array in dataset.inputs.items()]
    targets = _describe(TARGETS, dataset.targets) if dataset.targets is not None else None
    return DataFacts(
        inputs=described, targets=targets, task=task, classes=classes, metric=metric, splits=files, notes=_unique(notes)
    )


def _load(path: Path, what: str, work: IntakeData) -> _Dataset:
    arrays = read_arrays(path, what)
    targets, groups = arrays.pop(TARGETS, None), arrays.pop(GROUPS, None)
    if work.inputs is not None:
        expected = [tensor.name for tensor in work.inputs]
        for name in expected:
            if name not in arrays:
                held = ", ".join(arrays) or "none"
                raise InvalidData(
                    f"{what} lacks the array {name!r} that the model takes (it holds: {held}); name the arrays as the model's "
                    f"inputs: {', '.join(expected)}, and targets."
                )
        extra = [name for name in arrays if name not in expected]
        if extra:
            raise InvalidData(
                f"{what} holds the array {extra[0]!r}, which is no input of the model; its inputs are {', '.join(expected)}, and "
                "beside them only targets and groups have a meaning."
            )
        arrays = {name: arrays[name] for name in expected}
        for tensor in work.inputs:
            _check_input(arrays[tensor.name], tensor, what)
    if not arrays:
        raise InvalidData(f"{what} holds no inputs, only {TARGETS}; add one array for each input of the model.")
    dataset = _Dataset(arrays, targets, groups)
    named = {
        **arrays,
        **({TARGETS: targets} if targets is not None else {}),
        **({GROUPS: groups} if groups is not None else {}),
    }
    for name, array in named.items():
        _check_array(name, array, what)
    lengths = {name: len(array) for name, array in named.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InvalidData(f"The arrays of {what.lower()} differ in length ({shown}); give one row per sample in each.")
    if groups is not None and groups.ndim != 1:
        raise InvalidData(f"{what} has groups of the shape {groups.shape}; give one label per sample.")
    return dataset


def _check_input(array: Array, tensor: Tensor, what: str) -> None:
    shape = tuple(tensor.shape[1:])
    wanted = "(samples, " + "".join(f"{size if size >= 0 else 'any'}, " for size in shape)
    wanted = wanted.rstrip(", ") + ("," if not shape else "") + ")"
    fits = array.ndim == len(tensor.shape) and all(
        size in (-1, actual) for size, actual in zip(shape, array.shape[1:], strict=True)
    )
    if not fits:
        raise InvalidData(
            f"{what} has {tensor.name!r} of the shape {array.shape} where the model takes {wanted}; reshape or transpose it "
            "before saving."
        )
    if array.dtype.name != tensor.dtype:
        raise InvalidData(
            f"{what} has {tensor.name!r} as {array.dtype.name} where the model takes {tensor.dtype}; save "
            f"{tensor.name}.astype('{tensor.dtype}')."
        )


def _check_array(name: str, array: Array, what: str) -> None:
    if array.ndim == 0 or array.size == 0:
        raise InvalidData(
            f"{what} has an empty array {name!r} (shape {array.shape}); give at least {_MINIMUM} samples."
        )
    if array.dtype.kind in "US" and name != GROUPS:
        raise InvalidData(f"{what} has text in {name!r}; give numbers, for labels their class index from 0.")
    if array.dtype.kind == "f":
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            bad = np.flatnonzero(~np.isfinite(flat[start : start + _CHUNK].astype(np.float64, copy=False)))
            if len(bad):
                row = (start + int(bad[0])) // (flat.size // len(array))
                raise InvalidData(
                    f"{what} holds NaN or infinity in {name!r}, first in sample {row}; remove or fill such samples, for example "
                    "with numpy.nan_to_num."
                )


def _agree(dataset: _Dataset, own: _Dataset) -> None:
    """The test file holds the same arrays as the data file."""
    if set(dataset.inputs) != set(own.inputs) or (dataset.targets is None) != (own.targets is None):
        raise InvalidData("The test file holds other arrays than the data file; save both with the same names.")
    pairs = [(name, dataset.inputs[name], own.inputs[name]) for name in dataset.inputs]
    if dataset.targets is not None and own.targets is not None:
        pairs.append((TARGETS, dataset.targets, own.targets))
    for name, first, second in pairs:
        if first.dtype != second.dtype or first.shape[1:] != second.shape[1:]:
            raise InvalidData(
                f"The test file has {name!r} as {second.dtype.name} {second.shape[1:]} per sample and the data file as "
                f"{first.dtype.name} {first.shape[1:]}; save both the same way."
            )


def _task(
    dataset: _Dataset, work: IntakeData
) -> tuple[Literal["classification", "multilabel", "regression", "detection", ""], str]:
    """What is predicted, and the metric that counts."""
    metric = work.metric
    info = known_metric(metric)
    if metric and info is None:
        raise InvalidData(f"There is no metric {metric!r}; use one of {', '.join(METRIC_NAMES)}.", field="metric")
    if info is None or info.kind != "map":
        _judged_output(work)
    if dataset.targets is None:
        if info is not None and info.needs_targets:
            raise InvalidData(
                f"The data file has no targets, which the metric {metric} needs; add an array named targets, or judge by "
                "agreement, cosine or kl."
            )
        if info is not None:
            return "", metric
        dataset.notes.append("There are no targets: no metric is measured, and distillation works without labels.")
        return "", ""
    if info is not None and info.needs_targets:
        return _task_of(info, dataset.targets, work), metric
    if dataset.targets.dtype.kind in "iub" and dataset.targets.ndim == 1 and not _one_value(work):
        return "classification", metric or DEFAULT_METRIC[CLASSIFICATION]
    return "regression", metric or DEFAULT_METRIC[REGRESSION]


def _task_of(
    info: MetricInfo, targets: Array, work: IntakeData
) -> Literal["classification", "multilabel", "regression", "detection"]:
    if REGRESSION in info.tasks:
        return "regression"
    if DETECTION in info.tasks:
        return "detection"
    if CLASSIFICATION not in info.tasks:
        return "multilabel"
    # AUROC judges both: one class index for each sample, or a 0 or 1 for each value of the output.
    several = targets.ndim > 1 or (_one_value(work) and targets.size == len(targets))
    return "multilabel" if several and MULTILABEL in info.tasks else "classification"


def _one_value(work: IntakeData) -> bool:
    """Whether the model gives one value for each sample."""
    output = _judged_output(work)
    return output is not None and (len(output.shape) < 2 or output.shape[1] == 1)


def _judged_output(work: IntakeData) -> Tensor | None:
    """The model's output that the metric judges: the one it names, else the first; None where no model was named."""
    if work.outputs is None:
        return None
    info = known_metric(work.metric)
    if info is None or not info.output:
        return work.outputs[0]
    names = [tensor.name for tensor in work.outputs]
    if info.output not in names:
        raise InvalidData(
            f"{info.name} names an output that the model has not; its outputs are {', '.join(names)}.", field="metric"
        )
    return work.outputs[names.index(info.output)]


def _check_zeros_and_ones(part: _Dataset, what: str, work: IntakeData, metric: str, notes: list[str]) -> int:
    """The number of labels; targets are a 0 or 1 for each value of the model's first output."""
    targets = part.targets
    assert targets is not None  # noqa: S101 - a multilabel task has targets; tells the type checker
    if not np.isin(targets, (0, 1)).all():
        raise InvalidData(
            f"{what} has targets other than 0 and 1, which {metric} needs for each value of the output; save those, or for "
            "class indices choose a metric such as accuracy or macro_f1."
        )
    if (targets == targets.reshape(-1)[0]).all():
        raise InvalidData(
            f"{what} has only {int(targets.reshape(-1)[0])} as targets; {metric} needs samples of both kinds."
        )
    if targets.dtype.kind == "b":
        part.targets = targets.astype(np.int64)
    _check_values(part, what, work, notes)
    return int(np.prod(targets.shape[1:], dtype=np.int64))


def _check_labels(part: _Dataset, what: str, work: IntakeData, metric: str, notes: list[str]) -> int:
    """The number of classes; labels are class indices that the model's first output has."""
    targets = part.targets
    assert targets is not None  # noqa: S101 - a classification task has targets; tells the type checker
    if targets.dtype.kind not in "iu":
        raise InvalidData(
            f"{what} has targets of {targets.dtype.name} where {metric} needs class indices; save targets.astype('int64'), or "
            "choose the metric mean_absolute_error for values."
        )
    if targets.ndim == 2 and targets.shape[1] == 1:
        raise InvalidData(f"{what} has targets of the shape {targets.shape}; save targets[:, 0].")
    if targets.ndim != 1:
        raise InvalidData(
            f"{what} has targets of the shape {targets.shape} where {metric} needs one class index per sample; for one-hot rows "
            "save targets.argmax(1)."
        )
    lowest, highest = int(targets.min()), int(targets.max())
    if lowest < 0:
        raise InvalidData(
            f"{what} has the class index {lowest}; classes count from 0, and unlabelled samples must be left out."
        )
    output = _judged_output(work)
    if output is None:
        return highest + 1
    if len(output.shape) != 2 or output.shape[1] < 2:
        raise InvalidData(
            f"The model's output {output.name} has the shape {output.shape} and so gives no score per class, which {metric} "
            "needs; choose the metric mean_absolute_error, or return one score per class."
        )
    classes = output.shape[1]
    if highest >= classes:
        raise InvalidData(
            f"{what} has the class index {highest} where the model has {classes} classes (0 to {classes - 1}); check the labels "
            "or the model's last layer."
        )
    info = known_metric(metric)
    if info is not None and info.k >= classes > 1:
        raise InvalidData(
            f"{metric} needs more than {info.k} classes, and the model's output {output.name} has {classes}; choose accuracy.",
            field="metric",
        )
    seen = len(np.unique(targets))
    if seen < 2 and info is not None and info.kind == "auroc":
        raise InvalidData(f"{what} has samples of one class only; {metric} needs samples of at least two.")
    if seen < classes:
        notes.append(f"{what} has samples of {seen} of the model's {classes} classes.")
    return classes


def _check_values(part: _Dataset, what: str, work: IntakeData, notes: list[str]) -> None:
    """Targets of a regression have the shape of the model's first output; a missing or extra axis of one is put right."""
    targets = part.targets
    assert targets is not None  # noqa: S101 - a regression task has targets; tells the type checker
    if targets.dtype.kind == "b":
        raise InvalidData(
            f"{what} has targets of bool; save targets.astype('float32') for values or 'int64' for classes."
        )
    output = _judged_output(work)
    if output is None:
        return
    wanted, given = tuple(output.shape[1:]), targets.shape[1:]
    if len(wanted) == len(given) and all(size in (-1, actual) for size, actual in zip(wanted, given, strict=True)):
        return
    fixed = all(size >= 0 for size in wanted)
    if fixed and tuple(s for s in wanted if s != 1) == tuple(s for s in given if s != 1):
        part.targets = targets.reshape((len(targets), *wanted))
        notes.append(
            f"The targets' shape {given} per sample was taken as {wanted}, the shape of the output {output.name}."
        )
        return
    raise InvalidData(
        f"{what} has targets of the shape {given} per sample where the model's output {output.name} has {wanted}; save targets of "
        "that shape."
    )


def _take(dataset: _Dataset, positions: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> _Dataset:
    targets = dataset.targets[positions] if dataset.targets is not None else None
    return _Dataset({name: array[positions] for name, array in dataset.inputs.items()}, targets, None)


def _write(out: Path, name: Literal["train", "validation", "test"], part: _Dataset) -> SplitFile:
    arrays = {**part.inputs, **({TARGETS: part.targets} if part.targets is not None else {})}
    with (out / f"{name}.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    return SplitFile(name=name, file=f"{name}.npz", count=part.count)


def _describe(name: str, array: Array) -> Tensor:
    return Tensor(name=name, dtype=array.dtype.name, shape=[-1, *array.shape[1:]])


def _unique(notes: list[str]) -> list[str]:
    return list(dict.fromkeys(notes))
