"""Matching features: which layers, by what measure, and what a map between widths begins as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.structure.groups import analyse
from fleetfit.compress.structure.removal import remove_units
from fleetfit.compress.training.features import Features
from fleetfit.core.errors import InvalidRecipe


class Stages(nn.Module):
    """Two sizes of feature maps, then a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * 16, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.second(functional.relu(self.first(image))))
        return self.head(functional.relu(self.hidden(self.third(x).flatten(1))))


class Encoder(nn.Module):
    """Layers over positions, with the width last."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(6) for _ in range(4)])
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + torch.tanh(layer(norm(x)))
        return self.head(x.mean(1))


def _load(module: nn.Module, sample: torch.Tensor, folder: Path) -> LayeredModel:
    return load_pt2(export(module.eval(), (sample,), folder / "m.pt2"))


@pytest.fixture
def stages(tmp_path: Path) -> LayeredModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return _load(Stages(), torch.randn(3, 1, 8, 8), tmp_path)


def _images(count: int = 64) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))}


def _call(*models: LayeredModel) -> None:
    for model in models:
        model.module.eval()
        model.call(_images())


def test_the_last_layer_of_each_stage_and_the_last_hidden_layer_are_found(stages: LayeredModel, tmp_path: Path) -> None:
    features = Features(stages.clone(), stages.clone(), "auto", _images())
    assert [pair.theirs for pair in features.pairs] == ["relu", "third", "relu_2"]
    assert all(pair.projector is None for pair in features.pairs)
    encoder = _load(Encoder(), torch.randn(2, 5, 6), tmp_path)
    x = {"x": torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(2))}
    found = Features(encoder.clone(), encoder.clone(), "auto", x)
    assert [(pair.theirs, pair.axis) for pair in found.pairs] == [(f"norms.{i}", -1) for i in (0, 1, 3)]


def test_a_copy_has_no_loss_and_a_student_that_knows_nothing_has_one(stages: LayeredModel) -> None:
    student, teacher = stages.clone(), stages.clone()
    features = Features(student, teacher, ["second", "hid*"], _images())
    assert [pair.theirs for pair in features.pairs] == ["second", "hidden"]
    _call(student, teacher)
    assert float(features.loss().detach()) == 0
    # It gives each unit's mean: the squared difference is the unit's variance.
    for name, axes in (("second", (0, 2, 3)), ("hidden", (0,))):
        mean = features._theirs.values[name].mean(axes, keepdim=True)
        features._ours.values[name] = mean.expand_as(features._theirs.values[name])
    torch.testing.assert_close(features.loss().detach(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_a_pruned_layer_is_mapped_back_to_the_originals_width(stages: LayeredModel) -> None:
    student, teacher = stages.clone(), stages.clone()
    with torch.no_grad():
        # What is removed is a linear function of what stays, so the map can give it back.
        second = student.module.get_submodule("second")
        for model in (student, teacher):
            layer = model.module.get_submodule("second")
            layer.weight[7] = layer.weight[0] - 2 * layer.weight[1]  # type: ignore[index,operator]
            layer.bias[7] = 0.3  # type: ignore[index,operator]
    mask = torch.ones(8, dtype=torch.bool)
    mask[7] = False
    remove_units(student, analyse(student), {"second": mask})
    assert second.out_channels == 7
    features = Features(student, teacher, ["second"], _images())
    projector = features.pairs[0].projector
    assert projector is not None and (projector.in_features, projector.out_features) == (7, 8)
    assert any("second (7 to 8)" in note for note in features.said())
    _call(student, teacher)
    assert float(features.loss().detach()) < 1e-4
    features.loss().backward()
    assert len(features.parameters()) == 2 and all(p.grad is not None for p in features.parameters())
    begun = projector.weight.detach().clone()
    with torch.no_grad():
        projector.weight.add_(1)
    features.reset()
    assert torch.equal(projector.weight, begun)


class Normed(nn.Module):
    """A batch norm before what is matched."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu(self.last(functional.relu(self.norm(self.conv(image))))).flatten(1))


def test_a_map_begins_from_what_the_student_gives_while_it_trains(tmp_path: Path) -> None:
    # As after a hard cut: the stored statistics are those of another network, and in evaluation hardly anything comes through.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        teacher = _load(Normed(), torch.randn(3, 1, 8, 8), tmp_path)
    student = teacher.clone()
    mask = torch.ones(4, dtype=torch.bool)
    mask[3] = False
    remove_units(student, analyse(student), {"last": mask})
    norm = student.module.get_submodule("norm")
    norm.running_var.fill_(1e6)  # type: ignore[union-attr,operator]
    features = Features(student, teacher, ["last"], _images())
    assert torch.equal(norm.running_var, torch.full((6,), 1e6))  # type: ignore[arg-type]
    teacher.module.eval()
    teacher.call(_images())
    student.module.train()
    student.call(_images())
    # 1 is what a map gives that knows nothing.
    assert float(features.loss().detach()) < 1
    features.close()
    frozen = Features(student, teacher, ["last"], _images(), frozen_norms=True)
    for model in (student, teacher):
        model.module.eval()
        model.call(_images())
    assert float(frozen.loss().detach()) < 1


def test_a_layer_that_was_split_is_matched_by_its_last_part(stages: LayeredModel) -> None:
    from fleetfit.compress.passes.base import Arrays, PassContext
    from fleetfit.compress.passes.low_rank import LowRank

    student = stages.clone()
    data = Arrays({"image": _images()["image"].numpy()}, None)
    context = PassContext(data, None, stages, "", "", 1, lambda part, activity: None)
    LowRank(ratio=0.3, samples=64).apply(student, context)
    features = Features(student, stages.clone(), ["hidden"], _images())
    assert [(pair.theirs, pair.ours) for pair in features.pairs] == [("hidden", "hidden.1")]


def test_hooks_are_taken_off_again(stages: LayeredModel) -> None:
    student, teacher = stages.clone(), stages.clone()
    features = Features(student, teacher, "auto", _images())
    features.close()
    assert not any(leaf._forward_hooks for model in (student, teacher) for leaf in model.module.modules())
    with pytest.raises(InvalidRecipe):
        Features(student, teacher, ["no_such"], _images())
    assert not any(leaf._forward_hooks for model in (student, teacher) for leaf in model.module.modules())


def test_names_that_fit_nothing_are_refused_with_those_there_are(stages: LayeredModel) -> None:
    with pytest.raises(InvalidRecipe, match=r"no layer is called conv\*; features can name first, .*second"):
        Features(stages.clone(), stages.clone(), ["first", "conv*"], _images())
