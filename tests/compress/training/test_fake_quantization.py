"""Fake quantization, and training with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.exporter import export_onnx, predict_onnx
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.passes.quantize_aware_training import QuantizeAwareTraining
from fleetfit.compress.quantization import quantize_onnx
from fleetfit.compress.quantization.error import output_errors
from fleetfit.compress.training.fake_quantization import fake_quantized, round_activation, round_weight
from fleetfit.core.errors import InvalidRecipe

from ..conftest import Trained


@given(st.integers(0, 10_000), st.integers(2, 8), st.sampled_from([0, 1]))
@settings(max_examples=40, deadline=None)
def test_weights_are_on_a_grid_of_each_channel_and_gradients_pass(seed: int, bits: int, axis: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 4, 3, generator=generator).requires_grad_()
    rounded = round_weight(weight, bits, axis)
    steps = 2 ** (bits - 1) if bits < 8 else 127
    scale = weight.detach().abs().amax([at for at in range(3) if at != axis], keepdim=True) / steps
    codes = rounded.detach() / scale
    assert torch.allclose(codes, codes.round(), atol=1e-3) and float(codes.abs().max()) <= steps + 1e-3
    assert bool(((rounded - weight).abs() <= scale / 2 + 1e-5).all())
    pull = torch.randn(5, 4, 3, generator=generator)
    (rounded * pull).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, pull)


def test_what_is_clipped_has_no_gradient_and_zero_stays_zero() -> None:
    values = torch.tensor([-3.0, -0.9, 0.0, 0.501, 2.0], requires_grad=True)
    rounded = round_activation(values, torch.tensor(-1.0), torch.tensor(1.0))
    assert rounded[2] == 0 and torch.allclose(rounded[1:4], values[1:4], atol=1 / 255)
    assert abs(float(rounded[0].detach()) + 1) < 0.01 and abs(float(rounded[4].detach()) - 1) < 0.01
    rounded.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("reduce_range", [True, False])
def test_weights_are_rounded_as_the_build_rounds_them(trained: Trained, reduce_range: bool) -> None:
    model = load_pt2(trained.model)
    context = PassContext(trained.train_arrays, None, None, "", "", 0, lambda part, activity: None)
    built = quantize_onnx(trained.onnx, Quantize(reduce_range=reduce_range), context)
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(built.content).graph.initializer}
    stored = tensors["head.1.weight_quantized"].astype(np.float32) * tensors["head.1.weight_scale"][:, None]
    weight = dict(model.module.named_parameters())["head.1.weight"].detach()
    assert np.allclose(round_weight(weight, 7 if reduce_range else 8).numpy(), stored, atol=1e-6)


def test_layers_are_as_they_were_afterwards(trained: Trained) -> None:
    model = load_pt2(trained.model)
    inputs = {"image": torch.from_numpy(trained.validation_arrays.inputs["image"][:20])}
    before, keys = model.call(inputs), list(model.module.state_dict())
    with fake_quantized(model.module, 3) as layers:
        assert len(layers) == 3
        model.call(inputs)
        for layer in layers:
            layer.watching = False
        rounded = model.call(inputs)
        with pytest.raises(RuntimeError):
            model.call({"image": inputs["image"][:, :, :3]})
    after = model.call(inputs)
    assert list(model.module.state_dict()) == keys
    for name, value in before.items():
        assert torch.equal(value, after[name]) and not torch.allclose(value, rounded[name], atol=1e-3)
    for leaf in model.module.modules():
        assert "weight" not in leaf.__dict__ and not leaf._forward_pre_hooks and not leaf._forward_hooks


class Deep(nn.Module):
    """Depthwise separable convolutions whose channels are scaled apart, which 8 bits in one range do not carry."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 4)
        with torch.no_grad():
            factor = torch.exp(2.5 * (2 * torch.rand(16) - 1))
            self.first.weight *= factor[:, None, None, None]
            self.first.bias *= factor
            self.deep.weight /= factor[:, None, None, None]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.point(torch.relu(self.deep(torch.relu(self.first(image))))))
        return self.head(x.mean((2, 3)))


def _images(count: int, seed: int) -> Arrays:
    return Arrays({"image": np.random.default_rng(seed).normal(size=(count, 2, 8, 8)).astype(np.float32)}, None)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> LayeredModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = Deep().eval()
    sample = torch.from_numpy(_images(2, 0).inputs["image"])
    return load_pt2(export(module, (sample,), Path(tmp_path_factory.mktemp("deep")) / "m.pt2"))


def test_a_build_of_the_trained_model_is_closer_to_the_original(deep: LayeredModel) -> None:
    model = deep.clone()
    context = PassContext(_images(512, 1), _images(128, 2), deep, "", "regression", 0, lambda part, activity: None)
    original = export_onnx(model)
    plain = quantize_onnx(original, Quantize(), context)
    done = QuantizeAwareTraining(epochs=6, batch=32, learning_rate=3e-3).apply(model, context)
    assert done.training_steps == 96 and "4 layers" in done.notes[0]
    trained = quantize_onnx(export_onnx(model), Quantize(), context)
    data = _images(300, 4)

    def error(content: bytes) -> float:
        return max(output_errors(predict_onnx(original, data, None), predict_onnx(content, data, None)).values())

    # By a third, a little more or less with each processor's order of sums.
    assert error(trained.content) < 0.8 * error(plain.content)


def test_a_model_without_such_layers_is_refused(trained: Trained) -> None:
    model = load_pt2(trained.model)
    for name, leaf in list(model.module.named_modules()):
        if isinstance(leaf, nn.Conv2d | nn.Linear):
            model.module.set_submodule(name, nn.Identity())
    context = PassContext(trained.train_arrays, None, model, "", "", 0, lambda part, activity: None)
    with pytest.raises(InvalidRecipe, match="no convolution or linear layer"):
        QuantizeAwareTraining().apply(model, context)
