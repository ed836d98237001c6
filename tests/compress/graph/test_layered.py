"""Counts and calls of a layered model, against figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.core.errors import InvalidModel


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 9, 5)
        self.free = nn.Parameter(torch.ones(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.depthwise(self.conv(x)))
        gram = torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2))
        return self.fc(F.relu(x).flatten(1)) * self.free + gram.sum((1, 2)).unsqueeze(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LayeredModel:
    torch.manual_seed(0)
    return load_pt2(export(Counted(), torch.randn(3, 2, 7, 7), tmp_path_factory.mktemp("m") / "m.pt2"))


def test_parameters(model: LayeredModel) -> None:
    conv, depthwise, norm, fc, free = 4 * 2 * 9 + 4, 4 * 9, 8, 5 * 36 + 5, 5
    assert model.parameters_count() == conv + depthwise + norm + fc + free
    # Running mean and variance are stored too; the counter of batches is not.
    assert model.weight_bytes() == 4 * (model.parameters_count() + 8)
    assert model.recognised_share() == pytest.approx(1 - 5 / model.parameters_count())


def test_macs_are_of_one_sample(model: LayeredModel) -> None:
    positions = 9
    conv, depthwise, gram, fc = positions * 4 * 2 * 9, positions * 4 * 9, 4 * 4 * positions, 36 * 5
    assert model.macs() == conv + depthwise + gram + fc
    assert not model.module.training


def test_macs_leave_training_mode_and_statistics_alone(model: LayeredModel) -> None:
    clone = model.clone()
    clone.module.train()
    before = clone.module.get_submodule("norm").running_mean.clone()  # type: ignore[operator, union-attr]
    clone.macs()
    assert clone.module.training
    assert torch.equal(clone.module.get_submodule("norm").running_mean, before)  # type: ignore[arg-type]


def test_call_is_by_name(model: LayeredModel) -> None:
    assert set(model.call({"x": torch.randn(4, 2, 7, 7), "other": torch.ones(1)})) == {"output"}
    with pytest.raises(InvalidModel, match="takes x; x was not given"):
        model.call({})


def test_a_clone_shares_nothing(model: LayeredModel) -> None:
    clone = model.clone()
    with torch.no_grad():
        for parameter in clone.module.parameters():
            parameter.zero_()
    clone.notes.append("changed")
    assert model.call(model.sample_inputs)["output"].abs().sum() > 0
    assert "changed" not in model.notes


def test_facts(model: LayeredModel) -> None:
    facts = model.facts()
    assert facts.trainable
    assert facts.inputs[0].shape == [-1, 2, 7, 7] and facts.outputs[0].shape == [-1, 5]


def test_a_fixed_batch_stays_fixed_when_saved(tmp_path: Path, model: LayeredModel) -> None:
    clone = model.clone()
    clone.dynamic_batch = False
    clone.save_pt2(tmp_path / "fixed.pt2")
    program = torch.export.load(tmp_path / "fixed.pt2")
    with pytest.raises(Exception, match="shape|Guard"):
        program.module()(torch.randn(5, 2, 7, 7))


def test_kept_zeros_survive_a_file(tmp_path: Path, model: LayeredModel) -> None:
    clone = model.clone()
    clone.sparse = {"fc.weight", "conv.weight", "gone.weight"}
    clone.save_pt2(tmp_path / "sparse.pt2")
    assert load_pt2(tmp_path / "sparse.pt2").sparse == {"fc.weight", "conv.weight"}
    assert model.sparse == set()


@pytest.mark.parametrize(
    ("sparse", "said"),
    [(["elsewhere.weight"], "'elsewhere.weight' are to stay"), ("fc.weight", "unreadable"), ([1], "unreadable")]
    + [([f"w{n}" for n in range(10_001)], "10001 weights")],
)
def test_what_is_no_list_of_its_weights_is_refused(
    tmp_path: Path, model: LayeredModel, sparse: object, said: str
) -> None:
    facts = {"inputs": ["x"], "outputs": ["output"], "dynamic_batch": True, "sparse": sparse}
    torch.export.save(model.exported(), tmp_path / "m.pt2", extra_files={"fleetfit.json": json.dumps(facts)})
    with pytest.raises(InvalidModel, match=said):
        load_pt2(tmp_path / "m.pt2")


def test_attention_and_recurrence_count(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lstm(x)[0]
            return F.scaled_dot_product_attention(y, y, y)

    model = load_pt2(export(Both(), torch.randn(2, 6, 4), tmp_path / "m.pt2"))
    steps, attention = 6 * 4 * 8 * (4 + 8), 2 * 6 * 6 * 8
    assert model.macs() == steps + attention
