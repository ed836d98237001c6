"""Cross-layer equalization and bias correction."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.exporter import export_onnx, predict_onnx
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.quantization import quantize_onnx
from fleetfit.compress.quantization.calibration import Batches, Observed
from fleetfit.compress.quantization.equalization import equalize
from fleetfit.compress.quantization.error import output_errors


class Separable(nn.Module):
    """Depthwise separable convolutions, whose channels can be scaled apart without changing the function."""

    def __init__(self, act: nn.Module, spread: float) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(2, 16, 3, padding=1), act
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1, bias=False)
        self.grouped = nn.Conv2d(24, 12, 3, groups=3)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(12 * 9, 5)
        layers = [self.first, self.deep, self.point, self.grouped]
        with torch.no_grad():
            for number, (one, other) in enumerate(zip(layers[:-1], layers[1:], strict=True)):
                factor = torch.exp(spread * (2 * torch.rand(one.out_channels, generator=_seeded(number)) - 1))
                one.weight *= factor[:, None, None, None]
                if one.bias is not None:
                    one.bias *= factor
                groups = other.groups
                other.weight /= (
                    factor.reshape(groups, 1, -1)
                    .expand(-1, other.out_channels // groups, -1)
                    .flatten(0, 1)[..., None, None]
                )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.act(self.point(self.act(self.deep(self.act(self.first(image))))))
        return self.head(self.pool(self.act(self.grouped(x))).flatten(1))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int, seed: int) -> Arrays:
    return Arrays({"image": np.random.default_rng(seed).normal(size=(count, 2, 8, 8)).astype(np.float32)}, None)


@functools.cache
def _exported(act: str, spread: float) -> bytes:
    """Of the network with these activations, once: exporting takes longer than most of what follows."""
    acts = {"relu": nn.ReLU(), "clip": nn.Hardtanh(0.0, 6.0), "sigmoid": nn.Sigmoid()}
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(1)
        module = Separable(acts[act], spread).eval()
        sample = torch.from_numpy(_images(2, 0).inputs["image"])
        return export_onnx(load_pt2(export(module, (sample,), Path(folder) / "m.pt2")))


@pytest.fixture(scope="module")
def badly_scaled() -> bytes:
    return _exported("relu", 5.0)


@pytest.fixture
def context() -> PassContext:
    return PassContext(_images(256, 1), _images(128, 2), None, "", "", 0, lambda part, activity: None)


def _error(one: bytes, other: bytes) -> float:
    data = _images(200, 3)
    return max(output_errors(predict_onnx(one, data, None), predict_onnx(other, data, None)).values())


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_collapses_on_badly_scaled_channels_and_recovers(
    badly_scaled: bytes, context: PassContext, per_channel: bool
) -> None:
    plain = quantize_onnx(badly_scaled, Quantize(per_channel=per_channel), context)
    equalized = quantize_onnx(badly_scaled, Quantize(per_channel=per_channel, equalize=True), context)
    assert _error(badly_scaled, plain.content) > 0.4
    assert _error(badly_scaled, equalized.content) < 0.12
    assert equalized.integer_operators == plain.integer_operators == 5
    assert any("3 pairs" in note for note in equalized.notes)


def _weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_function_stays_and_ranges_become_alike(badly_scaled: bytes) -> None:
    model = onnx.load_model_from_string(badly_scaled)
    assert equalize(model, dict, False).pairs == 3
    assert _error(badly_scaled, model.SerializeToString()) < 1e-4
    weights = _weights(model)
    rows = np.abs(weights["first.weight"]).max((1, 2, 3))
    columns = np.abs(weights["deep.weight"]).max((1, 2, 3))
    assert np.allclose(rows, columns, rtol=0.01)
    rows = np.abs(weights["point.weight"]).max((1, 2, 3))
    columns = np.abs(weights["grouped.weight"].reshape(3, 4, 8, 9)).max((1, 3)).reshape(-1)
    assert np.allclose(rows, columns, rtol=0.01)
    assert equalize(model, dict, False).pairs == 3
    for name, value in _weights(model).items():
        assert np.allclose(value, weights[name], rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("per_channel", [True, False])
def test_channels_below_a_clip_are_scaled_and_those_that_reach_it_stay(per_channel: bool) -> None:
    content = _exported("clip", 1.5)
    model = onnx.load_model_from_string(content)
    clips = [node.output[0] for node in model.graph.node if node.op_type == "Clip"]
    assert len(clips) == 4
    # Nothing is known of what reaches them, or everything reaches them.
    for known in ({}, {name: np.full(count, 6.0) for name, count in zip(clips, (16, 16, 24, 12), strict=True)}):
        done = equalize(model, lambda known=known: known, per_channel)
        assert done.pairs == 0 and model.SerializeToString() == content
    peaks = _peaks(content, clips, _images(400, 3))
    reached = [(peaks[name] >= 6).sum() for name in clips[:3]]
    assert 0 < sum(reached) < 56
    done = equalize(model, lambda: peaks, per_channel)
    assert done.pairs == 3 and done.fixed == pytest.approx(sum(reached) / 56)
    assert done.clipped == sum(count > 0 for count in reached)
    before, after = _weights(onnx.load_model_from_string(content)), _weights(model)
    changed = np.abs(after["deep.weight"] / before["deep.weight"] - 1).max((1, 2, 3)) > 1e-3
    assert changed.any()
    fixed = (peaks[clips[0]] >= 6) & (peaks[clips[1]] >= 6)
    assert not changed[fixed].any()
    # The clips stay, and on the values that they were judged by nothing changes.
    assert [node.op_type for node in model.graph.node].count("Clip") == 4
    assert _error(content, model.SerializeToString()) < 1e-4
    found = _peaks(model.SerializeToString(), clips, _images(400, 3))
    for name in clips[:3]:
        assert (found[name][peaks[name] < 6] <= 6 / 1.1 * (1 + 1e-4)).all()


def _peaks(content: bytes, names: list[str], data: Arrays) -> dict[str, np.ndarray]:
    observed = Observed(onnx.load_model_from_string(content), lambda node: set(node.output) & set(names))
    (values,) = observed.over(Batches(data, ["image"], len(data)))
    return {name: values[name].max((0, 2, 3)) for name in names}


def test_what_was_equalized_is_noted(context: PassContext) -> None:
    content = _exported("clip", 1.5)
    notes = quantize_onnx(content, Quantize(equalize=True), context).notes
    assert any("3 pairs" in note and "reach a clip" in note for note in notes)
    notes = quantize_onnx(_exported("sigmoid", 0.0), Quantize(equalize=True), context).notes
    assert any("none was equalized" in note for note in notes)


def _shift(one: bytes, other: bytes, data: Arrays) -> float:
    """How far the mean output is off, relative to how much the output varies."""
    (a,), (b,) = (predict_onnx(content, data, None).values() for content in (one, other))
    return float(np.abs((b - a).mean(0) / a.std(0)).max())


def test_corrected_biases_take_the_mean_shift_back(context: PassContext) -> None:
    content = _exported("relu", 1.5)
    plain = quantize_onnx(content, Quantize(per_channel=False), context)
    corrected = quantize_onnx(content, Quantize(per_channel=False, correct_bias=True), context)
    data = _images(400, 5)
    assert _shift(content, corrected.content, data) < 0.5 * _shift(content, plain.content, data)
    assert _error(content, corrected.content) < _error(content, plain.content)
    assert any("biases of 5 layers" in note for note in corrected.notes)
    assert corrected.integer_operators == 5
    again = quantize_onnx(content, Quantize(per_channel=False, correct_bias=True), context)
    assert again.content == corrected.content
    mixed = Quantize(per_channel=False, correct_bias=True, keep_float=("point",))
    assert quantize_onnx(content, mixed, context).integer_operators == 4


def test_weights_rounded_for_their_outputs_lose_less(context: PassContext) -> None:
    content = _exported("clip", 1.5)
    plain = quantize_onnx(content, Quantize(), context)
    rounded = quantize_onnx(content, Quantize(rounding="gptq"), context)
    assert _error(content, rounded.content) < 0.9 * _error(content, plain.content)
    assert any("weights of 5 layers" in note for note in rounded.notes)
    one, other = (_integers(built.content) for built in (plain, rounded))
    assert one.keys() == other.keys()
    assert all(np.abs(values).max() <= 64 for values in other.values())
    # The first layer's inputs are noise: there is nothing that its weights could make up for in each other.
    assert sum((other[name] != values).any() for name, values in one.items()) >= 4
    assert quantize_onnx(content, Quantize(rounding="gptq"), context).content == rounded.content
    both = Quantize(rounding="gptq", correct_bias=True, reduce_range=False, keep_float=("deep",))
    built = quantize_onnx(content, both, context)
    assert built.integer_operators == 4
    assert any("weights of 4 layers" in note and "biases of 5 layers" in note for note in built.notes)


def _integers(content: bytes) -> dict[str, np.ndarray]:
    kinds = (onnx.TensorProto.INT8,)
    tensors = onnx.load_model_from_string(content).graph.initializer
    return {t.name: numpy_helper.to_array(t).astype(int) for t in tensors if t.data_type in kinds and len(t.dims) > 1}


@pytest.mark.parametrize("parameters", [{"mode": "dynamic"}, {"dtype": "int4"}, {"dtype": "fp16"}])
def test_all_are_for_static_int8(parameters: dict[str, str]) -> None:
    for name, value in (("equalize", True), ("correct_bias", True), ("rounding", "gptq")):
        with pytest.raises(ValueError, match="static int8"):
            Quantize.model_validate({**parameters, name: value})
