"""Average precision of boxes against cases computed by hand and a plain reading of COCO's rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetfit.core.errors import InvalidData, InvalidInput
from fleetfit.core.metrics import OVERLAPS, metric_info, with_boxes
from fleetfit.core.statistics import metric_point, metric_value, paired_drop, score_samples
from fleetfit.core.statistics_detection import corners

Numbers = NDArray[np.float64]
BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def made(seed: int, images: int = 12, noise: float = 1.5) -> tuple[Numbers, Numbers]:
    """Targets (N, 4, 5) of three classes, and detections (N, 9, 6) near them, some of them wrong, many scores equal."""
    generator = np.random.default_rng(seed)
    near = generator.uniform(0, 60, (images, 4, 2))
    boxes = np.concatenate([near, near + generator.uniform(8, 30, (images, 4, 2))], axis=2)
    classes = generator.integers(-1, 3, (images, 4, 1)).astype(float)
    classes[0, 0] = 1
    boxes[np.broadcast_to(classes < 0, boxes.shape)] = -1
    found = np.concatenate([boxes + generator.normal(0, noise, boxes.shape) for _ in range(2)] + [boxes[:, :1]], axis=1)
    named = np.concatenate([classes, classes, generator.integers(-1, 4, (images, 1, 1))], axis=1)
    scores = generator.integers(1, 30, (images, 9, 1)) / 30
    return np.concatenate([boxes, classes], axis=2), np.concatenate([found, scores, named], axis=2)


def plain(targets: Numbers, found: Numbers) -> float:
    """COCO's evaluation, one detection after the other."""
    results = []
    for which in np.unique(targets[..., 4][targets[..., 4] >= 0]):
        for overlap in OVERLAPS:
            rows, count = [], 0
            for wanted, given_ in zip(targets, found, strict=True):
                boxes = wanted[wanted[:, 4] == which, :4]
                free, count = [True] * len(boxes), count + len(boxes)
                mine = given_[given_[:, 5] == which]
                for one in mine[np.argsort(-mine[:, 4], kind="stable")]:
                    best, at = overlap, -1
                    for number, box in enumerate(boxes):
                        w = max(min(one[2], box[2]) - max(one[0], box[0]), 0)
                        h = max(min(one[3], box[3]) - max(one[1], box[1]), 0)
                        area = sum(max(b[2] - b[0], 0) * max(b[3] - b[1], 0) for b in (one, box)) - w * h
                        if free[number] and area > 0 and w * h / area >= best:
                            best, at = w * h / area, number
                    if at >= 0:
                        free[at] = False
                    rows.append((one[4], at >= 0))
            hits = np.cumsum([hit for _, hit in sorted(rows, key=lambda row: -row[0])])
            rates = hits / (1 + np.arange(len(hits)))
            reached = hits / count
            results.append(
                np.mean(
                    [
                        max((r for r, at in zip(rates, reached, strict=True) if at >= x), default=0)
                        for x in np.linspace(0, 1, 101)
                    ]
                )
            )
    return float(100 * np.mean(results))


def scored(metric: str, targets: object, found: object) -> NDArray[np.float32]:
    return score_samples(metric, {"found": np.asarray(found, dtype=float)}, np.asarray(targets, dtype=float))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_is_what_coco_computes(seed: int) -> None:
    targets, found = made(seed)
    assert metric_point("map", scored("map", targets, found)) == pytest.approx(plain(targets, found), abs=1e-3)


class TestByHand:
    def test_one_of_two_boxes(self) -> None:
        scores = scored("map50", [[[*BOX, 0], [*FAR, 0]]], [[[*BOX, 0.9, 0]]])
        assert metric_point("map50", scores) == pytest.approx(100 * 51 / 101)

    def test_a_second_match_of_one_box_is_wrong_and_a_wrong_one_ahead_costs_half(self) -> None:
        target = [[[*BOX, 0]]]
        assert metric_point("map50", scored("map50", target, [[[*BOX, 0.9, 0], [*BOX, 0.8, 0]]])) == 100
        assert metric_point("map50", scored("map50", target, [[[*BOX, 0.8, 0], [*FAR, 0.9, 0]]])) == 50

    def test_an_overlap_of_six_tenths_counts_at_three_of_ten(self) -> None:
        scores = scored("map", [[[*BOX, 0]]], [[[0, 0, 10, 6.2, 0.9, 0]]])
        assert metric_point("map", scores) == pytest.approx(30)
        assert metric_point("map50", scores) == 100
        assert metric_point("map75", scores) == 0

    def test_classes_without_boxes_and_padding_are_left_out(self) -> None:
        found = [[[*BOX, 0.9, 0], [*BOX, 0.95, 7], [*FAR, 0.99, -1], [np.nan, 0, 1, 1, 0.99, 0]]]
        assert metric_point("map", scored("map", [[[*BOX, 0], [-1] * 5]], found)) == 100


@pytest.mark.parametrize("form", ["xywh", "cxcywh"])
def test_boxes_in_any_format_and_in_two_outputs(form: str) -> None:
    targets, found = made(3)
    wanted = metric_point("map", scored("map", targets, found))

    def turned(boxes: Numbers) -> Numbers:
        size = boxes[..., 2:] - boxes[..., :2]
        result = np.concatenate([boxes[..., :2] + (size / 2 if form == "cxcywh" else 0), size], axis=-1)
        np.testing.assert_allclose(corners(result, form), boxes, atol=1e-9)
        return result / 100  # shares of the picture

    classes, values = found[..., 5].astype(int), np.full((*found.shape[:2], 4), np.nan)
    for which in range(4):
        values[..., which] = np.where(classes == which, found[..., 4], np.nan)
    told = np.concatenate([turned(targets[..., :4]), targets[..., 4:]], axis=2)
    outputs = {"a": values, "b": turned(found[..., :4])}
    got = score_samples(f"map@{form}:b,a", outputs, told)
    assert metric_point(f"map@{form}:b,a", got) == pytest.approx(wanted)
    with pytest.raises(InvalidData, match="several of a"):
        score_samples(f"map@{form}", outputs, told)
    with pytest.raises(InvalidData, match="no output 'c'"):
        score_samples("map:b,c", outputs, told)


class TestIntervals:
    def test_holds_the_value_and_the_same_images_in_parts_score_alike(self) -> None:
        targets, found = made(1, 40)
        scores = scored("map", targets, found)
        parts = np.concatenate([scored("map", targets[at : at + 16], found[at : at + 16]) for at in (0, 16, 32)])
        np.testing.assert_array_equal(scores, parts)
        interval = metric_value("map", scores)
        assert interval.low < interval.value == metric_point("map", scores) < interval.high
        assert interval == metric_value("map", scores)

    def test_perfect_and_equal_are_not_without_doubt(self) -> None:
        widths = []
        for images in (20, 200):
            targets, _ = made(2, images)
            whole = np.concatenate([targets[..., :4], np.ones((images, 4, 1)), targets[..., 4:]], axis=2)
            scores = scored("map", targets, whole)
            assert metric_value("map", scores).value == 100
            low, drop = metric_value("map", scores).low, paired_drop("map", scores, scores)
            assert drop.low < drop.value == 0 < drop.high
            widths.append((100 - low, drop.high))
        assert 0 < widths[1][0] < widths[0][0] and widths[1][1] < widths[0][1]

    def test_a_worse_build_is_told_apart(self) -> None:
        (targets, good), (same, bad) = made(4, 80, noise=0.5), made(4, 80, noise=4)
        np.testing.assert_array_equal(targets, same)
        a, b = scored("map", targets, good), scored("map", targets, bad)
        drop = paired_drop("map", b, a)
        assert 0 < drop.low <= drop.value <= drop.high
        assert drop.value == pytest.approx(metric_point("map", a) - metric_point("map", b))


@pytest.mark.parametrize(
    ("found", "targets", "said"),
    [
        (np.zeros((2, 3, 6)), np.zeros((2, 5)), r"\(N, M, 5\)"),
        (np.zeros((2, 3, 7)), np.zeros((2, 1, 5)), "none of found"),
        (np.zeros((3, 3, 6)), np.zeros((2, 1, 5)), "3 outputs for 2"),
    ],
)
def test_wrong_shapes_are_refused(found: Numbers, targets: Numbers, said: str) -> None:
    with pytest.raises(InvalidData, match=said):
        score_samples("map", {"found": found}, targets)


def test_a_split_without_boxes_and_scores_of_another_metric_are_refused() -> None:
    with pytest.raises(InvalidData, match="has none"):
        metric_value("map", scored("map", -np.ones((2, 1, 5)), np.zeros((2, 3, 6))))
    with pytest.raises(InvalidData, match="update the agent"):
        metric_value("map", np.ones(5, np.float32))
    (targets, found), (others, _) = made(1), made(2)
    with pytest.raises(InvalidData, match="different samples"):
        paired_drop("map", scored("map", targets, found), scored("map", others, found))


def test_a_box_format_is_part_of_the_name() -> None:
    assert with_boxes("map50:boxes,scores", "xywh") == "map50@xywh:boxes,scores"
    assert metric_info("map50@xywh:boxes,scores").boxes == "xywh"
    for name, boxes in (("map", "yxyx"), ("accuracy", "xyxy"), ("map@xywh", "xyxy")):
        with pytest.raises(InvalidInput) as caught:
            with_boxes(name, boxes)
        assert caught.value.field == "boxes"
