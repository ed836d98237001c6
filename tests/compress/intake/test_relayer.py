"""A relayered model is the exported one: equal, trainable, and stable through another export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.core.errors import InvalidModel

from .conftest import CASES, FixedBatch, build

Archives = Callable[[str], Path]


def outputs_of(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", CASES)
def test_relayered_equals_original_trains_and_exports_again(name: str, archive_of: Archives, tmp_path: Path) -> None:
    original, inputs = build(name)
    model = load_pt2(archive_of(name))
    assert model.dynamic_batch, model.notes
    assert model.notes == []
    # Only the encoder's own token belongs to no layer.
    assert model.recognised_share() >= (0.99 if name == "encoder" else 1.0)

    # Equal, on other inputs than intake has seen, at a batch size of its own.
    torch.manual_seed(1)
    fresh = [torch.cat([CASES[name][1]()[i] for _ in range(3)]) for i in range(len(inputs))]
    names = [tensor.name for tensor in model.inputs]
    with torch.no_grad():
        expected = outputs_of(original(*fresh))
        actual = model.call(dict(zip(names, fresh, strict=True)))
    for want, got in zip(expected, actual.values(), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

    # The facts are the original's.
    unique = {id(p): p.numel() for p in original.parameters()}
    assert model.parameters_count() == sum(unique.values())
    assert model.macs() > 0

    # A clone trains and the loss goes down, while the model itself stays.
    clone = model.clone()
    clone.module.train()
    optimizer = torch.optim.Adam(clone.module.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        result = clone.call(dict(zip(names, fresh, strict=True)))
        loss = sum(((value - 1) ** 2).mean() for value in result.values())
        assert isinstance(loss, torch.Tensor)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        again = model.call(dict(zip(names, fresh, strict=True)))
    for before, after in zip(actual.values(), again.values(), strict=True):
        assert torch.equal(before, after)

    # Saved after training and loaded again, it is the same model with the same names.
    clone.module.eval()
    clone.save_pt2(tmp_path / "again.pt2")
    loaded = load_pt2(tmp_path / "again.pt2")
    assert (loaded.inputs, loaded.outputs, loaded.dynamic_batch) == (model.inputs, model.outputs, True)
    assert loaded.parameters_count() == model.parameters_count()
    assert loaded.macs() == model.macs()
    with torch.no_grad():
        trained = clone.call(dict(zip(names, fresh, strict=True)))
        reloaded = loaded.call(dict(zip(names, fresh, strict=True)))
    for want, got in zip(trained.values(), reloaded.values(), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def leaves(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if not list(module.children())]


def test_layers_carry_the_users_names(archive_of: Archives) -> None:
    module = load_pt2(archive_of("small_cnn")).module
    assert isinstance(module.get_submodule("features.0"), nn.Conv2d)
    assert isinstance(module.get_submodule("features.1"), nn.BatchNorm2d)
    assert isinstance(module.get_submodule("head.3"), nn.Linear)
    assert "Dropout" not in leaves(module)
    assert [node for node in module.graph.nodes if node.op == "call_function"] == []


def test_constant_sizes_follow_the_channels(archive_of: Archives) -> None:
    """Half of a convolution's channels are cut out by hand; the graph between it and the linear layer still fits."""
    model = load_pt2(archive_of("small_cnn"))
    conv, norm = model.module.get_submodule("features.0"), model.module.get_submodule("features.1")
    head = model.module.get_submodule("head.0")
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and isinstance(head, nn.Linear)
    conv.weight, conv.bias = nn.Parameter(conv.weight[:3]), nn.Parameter(conv.bias[:3])  # type: ignore[index]
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name)[:3]))
    for name in ("running_mean", "running_var"):
        setattr(norm, name, getattr(norm, name)[:3])
    head.weight = nn.Parameter(head.weight[:, : 3 * 36])
    assert model.call(model.sample_inputs)["output"].shape == (2, 5)


def test_tied_weights_stay_one_parameter(archive_of: Archives) -> None:
    module = load_pt2(archive_of("tied")).clone().module
    embedding, head = module.get_submodule("embedding"), [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert any(linear.weight is embedding.weight for linear in head)
    # One layer called twice stays one layer.
    assert sum(linear.in_features == linear.out_features for linear in head) == 1


def test_in_place_calls_become_plain_ones(archive_of: Archives) -> None:
    module = load_pt2(archive_of("residual")).module
    assert leaves(module).count("ReLU") == 2
    assert not [n for n in module.graph.nodes if n.op == "call_function" and n.target._schema.is_mutable]


def test_a_matrix_product_with_a_parameter_becomes_a_layer(archive_of: Archives) -> None:
    model = load_pt2(archive_of("attention"))
    assert leaves(model.module).count("Linear") == 3
    assert model.recognised_share() == 1.0
    assert [tensor.name for tensor in model.outputs] == ["output_0", "output_1"]


def test_a_fixed_batch_size_is_noted_on_export_and_freed_by_relayering(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export(FixedBatch(), torch.randn(3, 8), tmp_path / "fixed.pt2")
    model = load_pt2(path)
    assert model.dynamic_batch
    assert model.inputs[0].shape == [-1, 8]
    assert any("exported only for batches of 3" in note for note in model.notes)
    assert any("its layers take any batch" in note for note in model.notes)
    assert model.call({"x": torch.randn(5, 8)})["output"].shape == (5, 2)


class MeetsItsNeighbours(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4) @ torch.arange(16.0).reshape(4, 4) + x.view(4) * x.sum()


def test_a_batch_that_cannot_be_freed_stays_fixed_with_a_note(tmp_path: Path) -> None:
    model = load_pt2(export(MeetsItsNeighbours(), torch.randn(4), tmp_path / "m.pt2"))
    assert not model.dynamic_batch
    assert model.inputs[0].shape == [4]
    assert any("takes only batches of 4" in note for note in model.notes)


class SharesMemory(nn.Module):
    """Writes into a view, and reads the whole afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        left = y[:, :3]
        left.relu_()
        y.add_(1)
        return left + y[:, 3:]


def test_writing_through_views_keeps_its_meaning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = SharesMemory().eval()
    model = load_pt2(export(original, torch.randn(3, 4), tmp_path / "m.pt2"))
    x = torch.randn(5, 4)
    torch.testing.assert_close(model.call({"x": x})["output"], original(x), atol=1e-6, rtol=1e-6)


class NotFinite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x - 1e9)


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x + self.calls


class NoBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (NotFinite(), "NaN or infinity"),
        (Random(), "differs between two calls"),
        (Counts(), "differs between two calls|changes its own"),
        (NoBatch(), "first axis of an output must be the batch"),
    ],
    ids=["not-finite", "random", "stateful", "no-batch"],
)
def test_models_that_cannot_be_compared_are_refused(model: nn.Module, says: str, tmp_path: Path) -> None:
    path = export(model, torch.randn(2, 3), tmp_path / "m.pt2")
    with pytest.raises(InvalidModel, match=says):
        load_pt2(path)


def test_a_model_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    """Made with torch alone, whose export does not switch to evaluation mode."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    with (tmp_path / "m.pt2").open("wb") as file:
        torch.export.save(torch.export.export(model, (torch.randn(2, 4),)), file)
    with pytest.raises(InvalidModel, match="training mode|differs between two calls"):
        load_pt2(tmp_path / "m.pt2")


def test_an_archive_made_by_torch_alone_is_read(tmp_path: Path) -> None:
    original, inputs = build("named")
    program = torch.export.export(original, inputs, dynamic_shapes={"x": {0: torch.export.Dim("n")}})
    with (tmp_path / "m.pt2").open("wb") as file:
        torch.export.save(program, file)
    model = load_pt2(tmp_path / "m.pt2")
    assert [tensor.name for tensor in model.inputs] == ["x"]
    assert [tensor.name for tensor in model.outputs] == ["classes", "value"]
