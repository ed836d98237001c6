"""A pulled variant in a user's own training: what it takes and returns, its zeros, and the way back into a file."""

from __future__ import annotations

import copy
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fleetfit
from fleetfit.client.pulling import TRAIN_PY
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.core.errors import NotFound, UnsupportedHere


class Small(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 16, 3)
        self.named = named

    def forward(self, image: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        features = torch.relu(self.norm(self.conv(image))).flatten(1)
        return {"logits": self.fc(features), "features": features} if self.named else self.fc(features)


def pulled(folder: Path, named: bool = False) -> Path:
    """A variant's folder, with half of the linear layer's weights zero."""
    torch.manual_seed(0)
    fleetfit.export(Small(named), torch.randn(3, 1, 4, 4), folder / "model.pt2")
    model = load_pt2(folder / "model.pt2")
    with torch.no_grad():
        model.module.get_parameter("fc.weight")[:, ::2] = 0
    model.sparse = {"fc.weight"}
    model.save_pt2(folder / "variant.pt2")
    return folder


def train(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        result = model(torch.randn(8, 1, 4, 4))
        (result["logits"] if isinstance(result, dict) else result).square().sum().backward()
        optimizer.step()


def test_zeros_stay_through_training_and_the_way_back(tmp_path: Path) -> None:
    before = load_pt2(pulled(tmp_path) / "variant.pt2")
    model = fleetfit.trainable(tmp_path)
    sample = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(model(sample), before.module(sample))
    train(model)
    weight = copy.deepcopy(model).get_submodule("fc").weight
    assert isinstance(weight, torch.Tensor)
    assert (weight[:, ::2] == 0).all() and (weight[:, 1::2] != 0).all()
    assert not torch.equal(weight[:, 1::2], before.module.get_parameter("fc.weight")[:, 1::2])
    model.eval()
    expected = model(sample)
    held = set(model.state_dict())
    after = load_pt2(fleetfit.export(model, sample, tmp_path / "trained.pt2"))
    assert set(model.state_dict()) == held, "the module in training is left as it was"
    assert after.sparse == {"fc.weight"}
    layers = [(name, type(layer)) for name, layer in before.module.named_modules() if name]
    assert [(name, type(layer)) for name, layer in after.module.named_modules() if name] == layers
    assert torch.equal(after.module.get_parameter("fc.weight"), weight)
    torch.testing.assert_close(after.module(sample), expected)


def test_outputs_are_named_as_the_originals(tmp_path: Path) -> None:
    model = fleetfit.trainable(pulled(tmp_path, named=True) / "variant.pt2")
    sample = torch.randn(2, 1, 4, 4)
    assert {name: value.shape[1] for name, value in model(image=sample).items()} == {"logits": 3, "features": 64}
    seen = [model.eval()(sample)["features"], model(sample)["features"], model.train()(sample)["features"]]
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2]), "normalized by the batch in training"
    train(model)
    again = load_pt2(fleetfit.export(model, {"image": sample}, tmp_path / "trained.pt2"))
    assert [tensor.name for tensor in again.outputs] == ["logits", "features"]


def test_tied_weights_are_held_wherever_they_are_read_and_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(12, 6)
            self.head = nn.Linear(6, 12, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(torch.relu(self.embedding(ids)))
            return result

    ids = torch.arange(12).reshape(4, 3)
    before = load_pt2(fleetfit.export(Tied(), ids, tmp_path / "model.pt2"))
    with torch.no_grad():
        before.module.get_parameter("embedding.weight")[::3] = 0
    before.sparse = {"embedding.weight"}
    before.save_pt2(tmp_path / "variant.pt2")
    model = fleetfit.trainable(tmp_path)
    assert len(list(model.parameters())) == 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids).exp().sum().backward()
    optimizer.step()
    after = load_pt2(fleetfit.export(model, ids, tmp_path / "trained.pt2"))
    assert "embedding.weight" in after.sparse and after.parameters_count() == before.parameters_count() == 72
    weight = after.module.get_parameter("embedding.weight")
    assert (weight[::3] == 0).all() and not torch.equal(weight, before.module.get_parameter("embedding.weight"))


def test_train_py_trains_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pulled(tmp_path, named=True) / "train.py").write_text(TRAIN_PY)
    np.savez(tmp_path / "d.npz", image=np.ones((40, 1, 4, 4), np.float32), targets=np.arange(40) % 3)
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "d.npz")])
    runpy.run_path(str(tmp_path / "train.py"), run_name="__main__")
    trained = load_pt2(tmp_path / "trained.pt2")
    assert trained.sparse == {"fc.weight"} and (trained.module.get_parameter("fc.weight")[:, ::2] == 0).all()


def test_a_folder_without_a_variant_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="models pull VARIANT --trainable"):
        fleetfit.trainable(tmp_path)


def test_without_pytorch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "variant.pt2").write_bytes(b"")
    for name in ("fleetfit.compress.intake.pt2", "fleetfit.compress.pruning.masks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedHere, match=r'pip install "fleetfit\[compress\]"'):
        fleetfit.trainable(tmp_path)
