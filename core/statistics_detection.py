"""Average precision of boxes as COCO computes it, with its interval, and how much less of it one build has than another.

Each image's detections are matched to its boxes once, at each overlap; what follows needs only scores, classes and matches,
so that a bootstrap over images draws images and matches nothing again. As for F1 the images drawn from hold made-up ones:
two found whole and two missed for one build, half a one for each way in which two builds can differ. Sources: T.-Y. Lin et
al., Microsoft COCO (ECCV 2014), its evaluation page, and for the intervals those named in core/statistics_f1.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData
from fleetfit.core.metrics import OVERLAPS, MetricInfo

Numbers = NDArray[Any]
Floats = NDArray[np.float64]
_Statistic = Callable[[list[Floats]], Floats]
_MOST: Final = 100
_RECALLS: Final = np.linspace(0, 1, 101)
_DRAWS: Final = 1000
_FEWEST_DRAWS: Final = 200
_WORK: Final = 10_000_000
_SEED: Final = 0
# Numbers held at once: a device may have little memory.
_CHUNK: Final = 1 << 20


def match_images(info: MetricInfo, outputs: Mapping[str, Numbers], targets: Numbers) -> NDArray[np.float32]:
    """What the metric needs of each image: (N, 1 + M + 200), M being the boxes that `targets` has room for.

    First M, then the class of each box (-1: none), then the scores of the 100 highest detections (NaN: none), then for each
    its class times 1024 plus one bit for each overlap of `OVERLAPS` at which it matches a box. Greedy, within each image
    and class, from the highest score: the box of the largest overlap that is still free.

    `targets` is (N, M, 5): a box and its class, -1 where there is none. Raises InvalidData where shapes do not fit.
    """
    if targets.ndim != 3 or targets.shape[2] != 5:
        raise InvalidData(f"{info.name} needs targets of the shape (N, M, 5), box and class, and has {targets.shape}")
    found, scores, classes = _detections(info, outputs)
    if len(found) != len(targets):
        raise InvalidData(f"the model gave {len(found)} outputs for {len(targets)} targets; its batch is not kept")
    wanted = np.where(targets[:, :, 4] >= 0, targets[:, :, 4], -1).astype(np.int64)
    overlaps = _overlaps(corners(found, info.boxes), corners(targets[:, :, :4].astype(np.float64), info.boxes))
    overlaps[(classes[:, :, None] != wanted[:, None, :]) | (classes < 0)[:, :, None]] = -1
    n, most, room = overlaps.shape
    free, codes = np.ones((n, len(OVERLAPS), room), dtype=bool), np.zeros((n, most), dtype=np.int64)
    least, rows, places = np.asarray(OVERLAPS)[None, :, None], np.arange(n)[:, None], np.arange(len(OVERLAPS))[None]
    for at in range(most if room else 0):
        here = np.where(free & (overlaps[:, at, None, :] >= least), overlaps[:, at, None, :], -1)
        best = here.argmax(axis=2)
        matched = here.max(axis=2) >= 0
        free[rows, places, best] &= ~matched
        codes[:, at] = (matched << places).sum(axis=1)
    there = classes >= 0
    result = np.full((n, 1 + room + 2 * _MOST), np.nan)
    result[:, 0], result[:, 1 : 1 + room] = room, wanted
    result[:, 1 + room : 1 + room + most] = np.where(there, scores, np.nan)
    result[:, 1 + room + _MOST :] = -1
    result[:, 1 + room + _MOST : 1 + room + _MOST + most] = np.where(there, classes * 1024 + codes, -1)
    return result.astype(np.float32)


def corners(boxes: Floats, form: str) -> Floats:
    """Boxes (..., 4) as left, top, right, bottom. `form` is one of `BOX_FORMATS`."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if form == "xywh":
        return np.concatenate([first, first + second], axis=-1)
    if form == "cxcywh":
        return np.concatenate([first - second / 2, first + second / 2], axis=-1)
    return boxes


def _detections(info: MetricInfo, outputs: Mapping[str, Numbers]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Boxes, scores and classes (-1: none) of the 100 highest of each image, from the highest."""
    names = info.detection_outputs({name: value.shape for name, value in outputs.items()})
    for name in names:
        if name not in outputs:
            raise InvalidData(f"the model has no output '{name}'; choose one of {', '.join(outputs)}")
    given = [outputs[name].astype(np.float64) for name in names]
    if len(given) == 1 and given[0].ndim == 3 and given[0].shape[2] == 6:
        boxes, scores, classes = given[0][..., :4], given[0][..., 4], given[0][..., 5]
    elif len(given) == 2 and all(one.ndim == 3 for one in given) and given[0].shape == (*given[1].shape[:2], 4):
        n, k, many = given[1].shape
        # Every box with every class is a detection of its own.
        boxes = np.broadcast_to(given[0][:, :, None], (n, k, many, 4)).reshape(n, k * many, 4)
        scores = given[1].reshape(n, k * many)
        classes = np.broadcast_to(np.arange(many, dtype=np.float64), (n, k, many)).reshape(n, k * many)
    else:
        shown = ", ".join(f"{name} {outputs[name].shape}" for name in names)
        raise InvalidData(
            f"{info.name} needs boxes (N, K, 4) and scores (N, K, classes), or one output (N, K, 6), and the model gives {shown}"
        )
    # What is not a number is no detection, and neither is a padding row, which has a class below 0.
    usable = np.isfinite(boxes).all(axis=2) & np.isfinite(scores) & np.isfinite(classes) & (classes >= 0)
    order = np.argsort(np.where(usable, -scores, np.inf), axis=1, kind="stable")[:, :_MOST]
    kept = np.take_along_axis(np.where(usable, np.rint(np.where(usable, classes, -1)), -1), order, axis=1)
    chosen = np.take_along_axis(np.where(usable[..., None], boxes, 0.0), order[..., None], axis=1)
    return chosen, np.take_along_axis(np.where(usable, scores, 0.0), order, axis=1), kept.astype(np.int64)


def _overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of the boxes of each image: (N, K, 4) and (N, M, 4) give (N, K, M)."""
    near, far = np.maximum(a[:, :, None, :2], b[:, None, :, :2]), np.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    shared = np.clip(far - near, 0, None).prod(axis=-1)
    areas = [np.clip(one[..., 2:] - one[..., :2], 0, None).prod(axis=-1) for one in (a, b)]
    whole = areas[0][:, :, None] + areas[1][:, None, :] - shared
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0), dtype=np.float64)


@dataclass(frozen=True)
class _Class:
    """One class: how many boxes each image has; its detections from the highest score, and which of them match."""

    boxes: Floats
    images: NDArray[np.intp]
    matched: list[NDArray[np.intp]]
    """For each overlap the places of those that match."""


def map_value(info: MetricInfo, scores: Numbers) -> tuple[float, float, float]:
    """Mean average precision over classes and overlaps with its 95 % interval, 0 to 1. `scores`: see `match_images`.

    Raises InvalidData where the split has no box.
    """
    classes, value = _read(info, scores), map_point(info, scores)
    share = np.array([len(scores), 2.0, 2.0])
    low, high = _bounds(value, share, scores, lambda w: _mean_precision(classes, w[0], w[1], w[0] + w[1] + w[2]))
    return value, max(low, 0.0), min(high, 1.0)


def map_point(info: MetricInfo, scores: Numbers) -> float:
    """`map_value` without the interval, which takes long on a small device."""
    ones, none = np.ones((1, len(scores))), np.zeros((1, len(scores)))
    return float(_mean_precision(_read(info, scores), ones, none, ones)[0])


def map_drop(info: MetricInfo, scores: Numbers, reference: Numbers) -> tuple[float, float, float]:
    """How much smaller it is than the reference's, over the same images, with its 95 % interval; -1 to 1.

    Raises InvalidData where the two were not scored on the same samples.
    """
    ours, theirs = _read(info, scores), _read(info, reference)
    room = 1 + int(scores[0, 0])
    if not np.array_equal(scores[:, :room], reference[:, :room]):
        raise InvalidData("the two builds were scored on different samples; measure both on the same split")
    value = map_point(info, reference) - map_point(info, scores)

    def statistic(w: list[Floats]) -> Floats:
        # Made up: found by both, by ours only, by theirs only, by none.
        every = w[0] + w[1] + w[2] + w[3] + w[4]
        return _mean_precision(theirs, w[0], w[1] + w[3], every) - _mean_precision(ours, w[0], w[1] + w[2], every)

    low, high = _bounds(value, np.array([len(scores), 0.5, 0.5, 0.5, 0.5]), scores, statistic)
    return value, max(low, -1.0), min(high, 1.0)


def _read(info: MetricInfo, scores: Numbers) -> list[_Class]:
    room = int(scores[0, 0]) if scores.ndim == 2 and np.isfinite(scores[0, 0]) else -1
    if room < 0 or scores.shape[1] != 1 + room + 2 * _MOST or (scores[:, 0] != room).any():
        raise InvalidData("the scores are none of this metric; update the agent that measured them")
    wanted, codes = scores[:, 1 : 1 + room], scores[:, 1 + room + _MOST :].astype(np.int64)
    ranked = scores[:, 1 + room : 1 + room + _MOST]
    which = [at for at, overlap in enumerate(OVERLAPS) if overlap in info.overlaps]
    found = []
    for one in np.unique(wanted[wanted >= 0]):
        images, places = np.nonzero((codes >= 0) & (codes // 1024 == one))
        order = np.argsort(-ranked[images, places], kind="stable")
        images, bits = images[order], codes[images, places][order]
        matched = [np.flatnonzero(bits >> at & 1) for at in which]
        # Behind the last match nothing changes any precision.
        last = max((int(places[-1]) + 1 for places in matched if len(places)), default=0)
        found.append(_Class((wanted == one).sum(axis=1).astype(np.float64), images[:last], matched))
    if not found:
        raise InvalidData(f"{info.name} needs images with boxes, and the split has none; push more data")
    return found


def _mean_precision(classes: list[_Class], drawn: Floats, whole: Floats, every: Floats) -> Floats:
    """For each draw; `drawn`, `whole`, `every` (draws, N): how often each image comes, comes as found whole, comes at all."""
    total, count = np.zeros(len(drawn)), np.zeros(len(drawn))
    for one in classes:
        boxes, ahead = every @ one.boxes, (whole @ one.boxes)[:, None]
        there = boxes > 0
        weights = drawn[:, one.images]
        reached = ahead + np.cumsum(weights, axis=1)
        precision = np.zeros(len(drawn))
        for places in one.matched:
            hits = np.concatenate([ahead, ahead + np.cumsum(weights[:, places], axis=1)], axis=1)
            rates = hits / np.maximum(np.concatenate([ahead, reached[:, places]], axis=1), 1e-300)
            # The best precision at this recall or a higher one.
            best = np.maximum.accumulate(rates[:, ::-1], axis=1)[:, ::-1]
            recall = hits / np.maximum(boxes, 1)[:, None]
            near = np.rint(100 * recall).astype(np.intp)
            passed = near + (recall >= _RECALLS[near])
            # With nothing found ahead no recall is reached there, not even that of 0.
            passed[:, :1][ahead == 0] = 0
            precision += (best * np.diff(passed, axis=1, prepend=0)).sum(axis=1) / len(_RECALLS)
        total += np.where(there, precision / len(one.matched), 0.0)
        count += there
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _bounds(value: float, share: Floats, scores: Numbers, statistic: _Statistic) -> tuple[float, float]:
    """95 % of the draws of images, each kind of them (real, then made up) as often as `share` says.

    Where images are much alike the made-up ones move the draws by more than chance does; so the distance from what they make
    of the value counts where it reaches further than the percentile.
    """
    generator, n = np.random.default_rng(_SEED), len(scores)
    cells = np.repeat(share / n, n)
    detections = int((scores[:, -_MOST:] >= 0).sum())
    # Percentiles of many detections spread less, and each draw of them takes long.
    draws = int(np.clip(_WORK // max(detections, 1), _FEWEST_DRAWS, _DRAWS))
    at_once = max(1, _CHUNK // max(len(cells), detections))
    found = []
    for at in range(0, draws, at_once):
        drawn = generator.multinomial(round(float(share.sum())), cells / cells.sum(), size=min(at_once, draws - at))
        found.append(statistic(np.split(drawn.astype(np.float64), len(share), axis=1)))
    centre = float(statistic(np.split(cells[None], len(share), axis=1))[0])
    low, high = np.nanquantile(np.concatenate(found), [0.025, 0.975])
    return value + min(0.0, float(low) - max(centre, value)), value + max(0.0, float(high) - min(centre, value))
