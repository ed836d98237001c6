"""From a model's outputs to what a metric needs of each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import MULTILABEL, MetricInfo, metric_info
from fleetfit.core.statistics_detection import match_images

Numbers = NDArray[Any]
Scores = NDArray[np.float32]


def score_samples(
    metric: str,
    outputs: Mapping[str, Numbers],
    targets: Numbers | None,
    reference: Mapping[str, Numbers] | None = None,
) -> Scores:
    """What the metric needs of each sample, in the samples' order; parts of a split may be scored apart and put together.

    The first output is judged, or the one that the metric names. One row per sample:

    - accuracy, top-k: (N,), 1 where the sample's class is among the k with the largest scores, else 0;
    - errors: (N,), the mean over the sample's values;
    - macro F1: (N, 2), the class and the chosen class (-1: none);
    - F1 at a threshold: (N, labels), twice the label plus 1 where it was given;
    - agreement: (N,), 1 where the original chooses the same class; cosine: (N,), of the sample's values and the original's;
      kl: (N,), the Kullback-Leibler divergence of the class probabilities from the original's, in nats;
    - average precision: see `match_images` of core/statistics_detection.py;
    - AUROC: (N, 1 + classes), the class and each class's score; or (N, 1 + 2 * labels): -1, the labels, their scores.

    Class scores have the shape (N, classes), or (N,) or (N, 1) for two classes; of equal scores the first counts as larger.
    Labels are 0 or 1 in the output's shape. A class chosen among values that are not numbers counts as wrong, and so does a
    label whose value is not a number; an error that is not a number stays one. `reference` holds the original's outputs for
    the same samples, for the metrics that need no targets. Raises InvalidData where the shapes do not
    fit or an output is not an array of numbers, one row per sample.
    """
    info = metric_info(metric)
    if info.kind == "map":
        if targets is None:
            raise InvalidData(f"{metric} needs targets, and the data has none; choose agreement, cosine or kl")
        return match_images(info, {name: _rows(value) for name, value in outputs.items()}, targets)
    output = _rows(judged_output(info, outputs))
    if not info.needs_targets:
        return _beside(info, output, reference)
    if targets is None:
        raise InvalidData(f"{metric} needs targets, and the data has none; choose agreement, cosine or kl")
    if len(output) != len(targets):
        raise InvalidData(f"the model gave {len(output)} outputs for {len(targets)} targets; its batch is not kept")
    if info.kind == "mean":
        return _errors(info, output, targets)
    if info.kind == "auroc":
        return _auroc(output, targets)
    if MULTILABEL in info.tasks:
        values, labels = _labels(output, targets)
        given = np.where(np.isnan(values), 1 - labels, values > info.threshold)
        return np.asarray(2 * labels + given, dtype=np.float32)
    wanted = targets.reshape(len(targets), -1)[:, 0].astype(np.int64)
    if info.kind == "f1":
        return np.stack([wanted, chosen_class(output)], axis=1).astype(np.float32)
    if info.k == 1:
        return np.asarray(chosen_class(output) == wanted, dtype=np.float32)
    return _among_largest(info, output, wanted)


def judged_output(info: MetricInfo, outputs: Mapping[str, Numbers]) -> Numbers:
    """The output that a metric judges. Raises InvalidData, naming those there are, where it names none of them."""
    if info.kind == "map":
        return outputs[info.detection_outputs({name: value.shape for name, value in outputs.items()})[-1]]
    if not info.output:
        return next(iter(outputs.values()))
    if info.output not in outputs:
        raise InvalidData(f"the model has no output '{info.output}'; choose one of {', '.join(outputs)}")
    return outputs[info.output]


def class_scores(output: Numbers) -> Numbers:
    """The scores as (N, classes); of further axes the last position counts."""
    if output.ndim >= 2 and output.shape[-1] > 1:
        scores: Numbers = output.reshape(len(output), -1, output.shape[-1])[:, -1]
        return scores
    return output.reshape(len(output), -1)[:, :1]


def chosen_class(output: Numbers) -> NDArray[np.int64]:
    """The class with the largest score, -1 where a value of the sample is not a number; (N,)."""
    scores = class_scores(output)
    chosen = scores.argmax(axis=-1) if scores.shape[1] > 1 else (scores[:, 0] > 0)
    # Comparisons with NaN are all false, so that argmax would name a class at random and might be right.
    known = ~np.isnan(output.reshape(len(output), -1).astype(np.float64)).any(axis=1)
    return np.where(known, chosen.astype(np.int64), -1)


def _rows(output: object) -> Numbers:
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub" or output.ndim == 0:
        raise InvalidData("the model's output is no array of numbers with one row per sample; export one that is")
    if output.size == 0:
        raise InvalidData("a metric needs at least one sample with one value; the model's output is empty")
    return output


def _beside(info: MetricInfo, output: Numbers, reference: Mapping[str, Numbers] | None) -> Scores:
    if reference is None:
        raise InvalidData(f"{info.name} needs the original's outputs beside the model's, and there are none")
    theirs = _rows(judged_output(info, reference))
    if theirs.shape != output.shape:
        raise InvalidData(f"the model gives {output.shape} where the original gives {theirs.shape}; both must be alike")
    if info.base == "agreement":
        chosen, wanted = chosen_class(output), chosen_class(theirs)
        return np.asarray((chosen == wanted) & (wanted >= 0), dtype=np.float32)
    if info.base == "cosine":
        a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (output, theirs))
        cosine = _cosine(a, b)
        return np.asarray(np.clip(cosine, -1, 1), dtype=np.float32)
    scores, wanted_scores = class_scores(output).astype(np.float64), class_scores(theirs).astype(np.float64)
    if scores.shape[1] < 2:
        raise InvalidData("kl needs an output with one score for each class; choose cosine")
    # A softmax that is part of the model: the logarithms of its values serve as logits.
    softmax = (wanted_scores >= 0).all(axis=1) & (np.abs(wanted_scores.sum(axis=1) - 1) < 1e-3)
    logs, wanted_logs = _log_probabilities(scores, softmax), _log_probabilities(wanted_scores, softmax)
    divergence = (np.exp(wanted_logs) * (wanted_logs - logs)).sum(axis=1)
    return np.asarray(np.where(divergence < 0, 0.0, divergence), dtype=np.float32)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row by row; two rows of zeros are alike, a row of zeros and another are not. NaN where a value is not finite."""
    parts = []
    with np.errstate(invalid="ignore"):
        for one in (a, b):
            # The squares of large values overflow.
            length = np.abs(one).max(axis=1, keepdims=True)
            parts.append(one / np.where(length > 0, length, 1.0))
        a, b = parts
        both = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        alike = ((a == 0).all(axis=1) & (b == 0).all(axis=1)).astype(np.float64)
        return np.asarray(np.divide((a * b).sum(axis=1), both, out=alike, where=both != 0), dtype=np.float64)


def _log_probabilities(scores: NDArray[np.float64], softmax: NDArray[np.bool_]) -> NDArray[np.float64]:
    logits = np.where(softmax[:, None], np.log(np.maximum(scores, 1e-7)), scores)
    # Infinite values stay comparable; what is not a number stays one.
    logits = np.clip(logits, -1e30, 1e30)
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), dtype=np.float64)


def _errors(info: MetricInfo, output: Numbers, targets: Numbers) -> Scores:
    flat, wanted = _alike(output, targets)
    difference = flat.astype(np.float64) - wanted.astype(np.float64)
    errors = np.abs(difference) if info.base == "absolute" else difference**2
    return np.asarray(errors.mean(axis=1), dtype=np.float32)


def _among_largest(info: MetricInfo, output: Numbers, wanted: NDArray[np.int64]) -> Scores:
    scores = class_scores(output).astype(np.float64)
    classes = scores.shape[1]
    if classes <= info.k:
        raise InvalidData(
            f"{info.name} needs more than {info.k} classes, and the output has {classes}; choose accuracy, or fewer"
        )
    there = (wanted >= 0) & (wanted < classes) & ~np.isnan(scores).any(axis=1)
    own = scores[np.arange(len(scores)), np.where(there, wanted, 0)][:, None]
    earlier = np.arange(classes) < wanted[:, None]
    before = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return np.asarray((before < info.k) & there, dtype=np.float32)


def _auroc(output: Numbers, targets: Numbers) -> Scores:
    scores = class_scores(output).astype(np.float64)
    labelled = targets.size == output.size
    if labelled or scores.shape[1] == 2:
        # Of two classes the difference of their scores orders samples as the second's probability does.
        values, labels = _labels(output, targets) if labelled else _labels(scores[:, 1] - scores[:, 0], targets)
        return np.concatenate([np.full((len(values), 1), -1.0), labels, values], axis=1).astype(np.float32)
    wanted = targets.reshape(len(targets), -1)[:, :1]
    return np.concatenate([wanted, scores], axis=1).astype(np.float32)


def _labels(output: Numbers, targets: Numbers) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values and labels as (N, labels)."""
    values, labels = _alike(output, targets)
    if not np.isin(labels, (0, 1)).all():
        raise InvalidData(
            "the targets are no labels: they hold other values than 0 and 1; save a 0 or 1 for each label"
        )
    return values.astype(np.float64), labels.astype(np.int64)


def _alike(output: Numbers, targets: Numbers) -> tuple[Numbers, Numbers]:
    flat, wanted = output.reshape(len(output), -1), targets.reshape(len(targets), -1)
    if flat.shape != wanted.shape:
        raise InvalidData(
            f"the model gives {flat.shape[1]} values per sample but the targets have {wanted.shape[1]}; "
            "give targets of the output's shape"
        )
    return flat, wanted
