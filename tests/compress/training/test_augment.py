"""Augmentations on pictures whose changed form is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.tasks import Tensor
from fleetfit.compress.training.augment import Augmenter
from fleetfit.core.errors import InvalidRecipe


def _model(**samples: torch.Tensor) -> LayeredModel:
    inputs = [
        Tensor(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=list(value.shape))
        for name, value in samples.items()
    ]
    return LayeredModel(fx.symbolic_trace(nn.Identity()), inputs, [], samples, True)


def _augmented(names: list[str], picture: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return Augmenter(_model(x=picture), names, len(picture), seed)({"x": picture}).inputs["x"]


def _ramp(count: int, height: int = 16, width: int = 24) -> torch.Tensor:
    """Each pixel says where it is: the row in the first channel, the column in the second."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).float().expand(count, 2, height, width)


def test_flip_turns_about_half_of_the_pictures_left_to_right() -> None:
    x = _ramp(200)
    y = _augmented(["flip"], x)
    turned = [torch.equal(b, a.flip(-1)) for a, b in zip(x, y, strict=True)]
    assert all(torch.equal(b, a) for a, b, turn in zip(x, y, turned, strict=True) if not turn)
    assert 70 < sum(turned) < 130


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_shift_moves_a_picture_by_at_most_an_eighth_and_repeats_its_border(seed: int) -> None:
    x = _ramp(5)
    for picture in _augmented(["shift"], x, seed):
        down = int(picture[0, 8, 0]) - 8
        right = int(picture[1, 0, 12]) - 12
        assert abs(down) <= 2 and abs(right) <= 3
        assert torch.equal(picture[0, :, 0], (torch.arange(16.0) + down).clamp(0, 15))
        assert torch.equal(picture[1, 0], (torch.arange(24.0) + right).clamp(0, 23))


def test_cutout_hides_one_square_with_the_batchs_mean() -> None:
    x = _ramp(6)
    y = _augmented(["cutout"], x)
    for before, after in zip(x, y, strict=True):
        changed = (before != after).any(0)
        rows, columns = changed.any(1), changed.any(0)
        assert int(rows.sum()) <= 4 and int(columns.sum()) <= 4
        torch.testing.assert_close(after[:, changed], torch.tensor([[7.5], [11.5]]).expand(2, int(changed.sum())))


def test_mixup_says_what_was_mixed_by_how_much() -> None:
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    done = Augmenter(_model(x=x), ["mixup"], 8, 3)({"x": x})
    assert done.partner is not None and 0.5 <= done.share <= 1
    torch.testing.assert_close(done.inputs["x"], done.share * x + (1 - done.share) * x[done.partner])


def test_several_pictures_are_changed_alike_and_the_rest_stays() -> None:
    x, kind = _ramp(20), torch.arange(20)
    inputs = {"left": x, "right": x + 100, "kind": kind}
    kept = {name: value.clone() for name, value in inputs.items()}
    done = Augmenter(_model(**inputs), ["flip", "shift"], 20, 1)(inputs).inputs
    torch.testing.assert_close(done["right"], done["left"] + 100)
    assert not torch.equal(done["left"], x) and done["kind"] is kind
    assert all(torch.equal(inputs[name], value) for name, value in kept.items())


def test_the_same_seed_changes_the_same() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 3, 12, 12)).astype(np.float32))
    names = ["flip", "shift", "cutout", "mixup"]
    assert torch.equal(_augmented(names, x), _augmented(names, x))
    assert not torch.equal(_augmented(names, x), _augmented(names, x, 2))


def test_what_is_no_picture_is_refused() -> None:
    for value in (torch.zeros(4, 10), torch.zeros(4, 2, 50), torch.zeros(4, 32, 32, 3), torch.zeros(4, 1, 8, 8).byte()):
        with pytest.raises(InvalidRecipe, match=r"works on pictures.*the model takes x \(4, "):
            Augmenter(_model(x=value), ["flip"], 4, 0)
    with pytest.raises(InvalidRecipe, match="a, b differ in size"):
        Augmenter(_model(a=torch.zeros(4, 1, 8, 8), b=torch.zeros(4, 1, 9, 8)), ["flip"], 4, 0)
    with pytest.raises(InvalidRecipe, match="one at a time"):
        Augmenter(_model(a=torch.zeros(1, 1, 8, 8)), ["mixup"], 1, 0)
    with pytest.raises(InvalidRecipe, match="not all inputs"):
        Augmenter(_model(a=torch.zeros(4, 1, 8, 8), kind=torch.zeros(4)), ["mixup"], 4, 0)
