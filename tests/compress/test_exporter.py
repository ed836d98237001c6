"""ONNX files of layered models, and the proof that they compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.exporter import OnnxSession, export_onnx, largest_difference, prove_equal
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.core.errors import InvalidModel

from .conftest import Trained


@pytest.fixture(scope="module")
def model(trained: Trained) -> LayeredModel:
    return load_pt2(trained.model)


@pytest.fixture(scope="module")
def content(model: LayeredModel) -> bytes:
    return export_onnx(model)


def test_names_and_batch_are_kept(model: LayeredModel, content: bytes, trained: Trained) -> None:
    session = OnnxSession(content)
    assert (session.input_names, session.names) == (["image"], ["output"])
    for count in (1, 5):
        inputs = trained.validation_arrays.head(count).inputs
        (got,) = session.run(inputs).values()
        expected = trained.module(torch.from_numpy(inputs["image"])).detach().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert prove_equal(model, content, trained.validation_arrays) < 1e-4


def test_the_file_tells_nothing_about_this_machine(content: bytes) -> None:
    for text in (b"fleetfit/", b"site-packages", b"pkg.torch", b".py"):
        assert text not in content


def test_every_supported_runtime_can_read_the_file(content: bytes) -> None:
    """What runtimes/onnxruntime.py takes for the oldest version has to follow where these rise."""
    model = onnx.load_model_from_string(content)
    assert model.ir_version <= 10
    assert [one.version for one in model.opset_import if one.domain == ""] == [18]


def test_the_same_model_gives_the_same_bytes(model: LayeredModel, content: bytes) -> None:
    assert export_onnx(model) == content


def test_a_wrong_weight_is_found(model: LayeredModel, content: bytes, trained: Trained) -> None:
    proto = onnx.load_model_from_string(content)
    tensor = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 2)
    changed = numpy_helper.to_array(tensor) * 1.02
    tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), tensor.name))
    wrong = proto.SerializeToString()
    assert largest_difference(model, wrong, trained.validation_arrays) > 1e-3
    with pytest.raises(InvalidModel, match="differ by"):
        prove_equal(model, wrong, trained.validation_arrays)


def test_a_frozen_batch_is_found(model: LayeredModel, trained: Trained) -> None:
    with pytest.raises(InvalidModel, match="does not run"):
        prove_equal(model, trained.fixed.read_bytes(), trained.validation_arrays)


def test_a_model_of_one_batch_size_is_proven_at_it(model: LayeredModel, trained: Trained) -> None:
    fixed = model.clone()
    fixed.dynamic_batch = False
    fixed.sample_inputs = trained_sample(trained, 3)
    assert prove_equal(fixed, trained.fixed.read_bytes(), trained.validation_arrays) < 1e-4
    assert prove_equal(fixed, trained.fixed.read_bytes(), None) < 1e-4


def trained_sample(trained: Trained, count: int) -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(trained.train_arrays.inputs["image"][:count])}


class Several(nn.Module):
    """Two inputs of two dtypes, two outputs of two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.out(self.words(tokens).mean(1)) * scale
        return {"logits": logits, "best": logits.argmax(1)}


def test_several_inputs_and_outputs_keep_their_names_and_dtypes(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("several") / "m.pt2"
    samples = (torch.randint(0, 20, (2, 5)), torch.rand(2, 1))
    model = load_pt2(export(Several().eval(), samples, path))
    content = export_onnx(model)
    session = OnnxSession(content)
    assert (session.input_names, session.names) == (["tokens", "scale"], ["logits", "best"])
    assert prove_equal(model, content, None) < 1e-4
    got = session.run({"tokens": np.zeros((4, 5), np.int64), "scale": np.ones((4, 1), np.float32)})
    assert (got["logits"].dtype, got["best"].dtype) == (np.float32, np.int64)


class _Attended(nn.Module):
    """Attention with scores added for every sample, as in T5 and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.bias = nn.Parameter(torch.randn(1, 2, 5, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self.bias.expand(len(x), 2, 5, 5)
        )
        return mixed.transpose(1, 2).reshape(len(x), 5, 8)


def test_attention_with_added_scores_is_expressed(tmp_path: Path) -> None:
    path = export(_Attended().eval(), (torch.randn(2, 5, 8),), tmp_path / "attended.pt2")
    model = load_pt2(path)
    assert prove_equal(model, export_onnx(model), None) < 1e-5
