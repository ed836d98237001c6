"""What a build gives here is kept beside it, and is what its runtime gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.export.registry import declared
from fleetfit.compress.exporter import OnnxSession, export_onnx
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.lowering import lower
from fleetfit.compress.pipeline import Sources, run_recipe
from fleetfit.compress.tasks import Build, Compress, Lower, Samples
from fleetfit.core.digests import sha256_file
from fleetfit.core.statistics import score_samples

WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(90, 4)).astype(np.float32)
TARGETS = np.random.default_rng(2).integers(0, 3, 90)
QUANTIZED = "{name: small, steps: [quantize: {mode: static}]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("evidence")
    np.savez(found / "data.npz", x=X, targets=TARGETS)
    layer = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(WEIGHTS.T))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    export(Net().eval(), (torch.from_numpy(X[:2]),), found / "model.pt2")
    return found


def affine(path: Path, batch: int | str) -> Path:
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, w]) for n, w in (("x", 4), ("output", 3))]
    weights = helper.make_tensor("w", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["output"])], "g", tensors[:1], tensors[1:], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def made(folder: Path, model: Path, out: Path, *, data: bool = True, **work: Any) -> Build:
    out.mkdir()
    sources = Sources(model, *([folder / "data.npz"] * 2 if data else [None, None]))
    asked = Compress(**({"recipe": "", "task": "classification", "metric": "accuracy", "evidence": True} | work))
    (build,) = run_recipe(asked, sources, out, lambda part, activity: None).builds
    for one in build.files():
        path = out / one.file
        assert (one.size_bytes, one.sha256) == (path.stat().st_size, sha256_file(path))
    return build


def held(out: Path, build: Build) -> dict[str, Any]:
    assert build.evidence is not None and build.evidence.runtime_version
    with np.load(out / build.evidence.file) as archive:
        return dict(archive)


def check_samples(out: Path, build: Build, count: int) -> Samples:
    """What is stored is what the build gives."""
    assert build.samples is not None
    with np.load(out / build.samples.file) as archive:
        arrays = dict(archive)
    inputs = {name.removeprefix("inputs/"): a for name, a in arrays.items() if name.startswith("inputs/")}
    assert {name: len(array) for name, array in inputs.items()} == {"x": count}
    outputs = OnnxSession((out / "build.onnx").read_bytes()).run(inputs)
    for name, values in outputs.items():
        np.testing.assert_array_equal(arrays[f"outputs/{name}"], values)
    return build.samples


@pytest.mark.parametrize(("recipe", "form"), [("", "onnx"), (QUANTIZED, "onnx"), ("", "pt2"), (QUANTIZED, "pt2")])
def test_scores_and_outputs_are_those_of_the_build_in_its_runtime(
    folder: Path, tmp_path: Path, recipe: str, form: str
) -> None:
    model = folder / "model.pt2" if form == "pt2" else affine(tmp_path / "model.onnx", "N")
    build = made(folder, model, tmp_path / "out", format=form, recipe=recipe)
    session = onnxruntime.InferenceSession((tmp_path / "out" / build.file).read_bytes())
    (outputs,) = session.run(None, {"x": X})
    found = held(tmp_path / "out", build)
    np.testing.assert_allclose(found["outputs"], outputs, atol=1e-6)
    np.testing.assert_array_equal(found["scores"], score_samples("accuracy", {"o": outputs}, TARGETS))
    own = np.abs(outputs - X @ WEIGHTS).max() / np.abs(X @ WEIGHTS).max()
    assert found["rounding"] == pytest.approx(own, rel=0.05, abs=1e-6)
    assert (found["rounding"] > 1e-3) == bool(recipe)
    assert check_samples(tmp_path / "out", build, 8).rounding >= found["rounding"] - 1e-9


def test_a_build_of_a_fixed_batch_has_samples_of_that_batch_and_all_scores(folder: Path, tmp_path: Path) -> None:
    build = made(folder, affine(tmp_path / "model.onnx", 16), tmp_path / "out", format="onnx")
    assert held(tmp_path / "out", build)["scores"].shape == (90,)
    check_samples(tmp_path / "out", build, 16)


def test_the_original_agrees_with_itself(folder: Path, tmp_path: Path) -> None:
    build = made(folder, folder / "model.pt2", tmp_path / "out", format="pt2", metric="kl")
    assert held(tmp_path / "out", build)["scores"].tolist() == [0.0] * 90


def test_without_data_there_are_samples_alone(folder: Path, tmp_path: Path) -> None:
    build = made(folder, folder / "model.pt2", tmp_path / "out", format="pt2", metric="", task="", data=False)
    assert build.evidence is None
    check_samples(tmp_path / "out", build, 8)


def test_what_nobody_asked_for_is_not_made(folder: Path, tmp_path: Path) -> None:
    build = made(folder, folder / "model.pt2", tmp_path / "out", format="pt2", evidence=False)
    assert (build.samples, build.evidence) == (None, None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["build.onnx", "variant.pt2"]


@pytest.mark.parametrize(("metric", "beside"), [("accuracy", False), ("agreement", False), ("agreement", True)])
def test_a_build_for_another_runtime_has_its_own_evidence(
    folder: Path, tmp_path: Path, metric: str, beside: bool
) -> None:
    here = declared("openvino").availability()
    if not here.available:
        pytest.skip(here.reason)
    exported, out = tmp_path / "build.onnx", tmp_path / "out"
    exported.write_bytes(export_onnx(load_pt2(folder / "model.pt2")))
    out.mkdir()
    work = Lower(runtime="openvino", metric=metric, evidence=True)
    original = affine(tmp_path / "original.onnx", "N") if beside else None
    files = folder / "model.pt2", exported, folder / "data.npz", out
    build = lower(work, *files, lambda part, activity: None, original)
    found = held(out, build)
    np.testing.assert_allclose(found["outputs"], X @ WEIGHTS, atol=1e-3)
    # Whether it agrees with the original is known only beside it.
    scored = metric == "accuracy" or beside
    assert build.evidence is not None and build.evidence.scored == scored == ("scores" in found)
    if beside:
        assert found["scores"].mean() > 0.97
