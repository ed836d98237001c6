"""Builds for other runtimes: equal to PyTorch at several batch sizes, or refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import load_model_from_string
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.export.base import Exporter
from fleetfit.compress.export.ncnn import NcnnExporter
from fleetfit.compress.export.openvino import OpenVinoExporter
from fleetfit.compress.export.registry import exporter, known
from fleetfit.compress.export.torch_tensorrt import TorchTensorRtExporter
from fleetfit.compress.exporter import OnnxSession, export_onnx, prove_session
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.local import compress_local
from fleetfit.compress.quantization.half import to_half
from fleetfit.compress.recipe import Recipe, named_recipe
from fleetfit.core.errors import InvalidModel, InvalidRecipe, UsageError
from fleetfit.runtimes.archive import pack, unpack
from fleetfit.runtimes.aten import read
from fleetfit.runtimes.aten_module import rebuild
from fleetfit.runtimes.ncnn import MEMBERS
from fleetfit.runtimes.registry import runtime

from .conftest import Trained
from .test_exporter import Several

PRUNED = "name: mine\nsteps: [activation_pruning: {ratio: 0.5}]"


class Tabular(nn.Module):
    """Rows of numbers in, a dictionary out: pnnx takes no dimension of it for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.left(left) + self.right(right))
        return {"share": self.out(hidden).softmax(1), "hidden": hidden}


class Shuffled(nn.Module):
    """A channel shuffle, which only one of pnnx's two readers knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.conv(image)
        count, channels, height, width = found.shape
        apart = found.view(count, 2, channels // 2, height, width).transpose(1, 2)
        return apart.reshape(count, channels, height, width).mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(steps)[0][:, -1])


def _layered(module: nn.Module, samples: tuple[torch.Tensor, ...], folder: Path) -> LayeredModel:
    return load_pt2(export(module.eval(), samples, folder / "m.pt2"))


def _available(one: Exporter) -> Exporter:
    here = one.availability()
    if not here.available:
        pytest.skip(here.reason)
    return one


@pytest.fixture(params=[OpenVinoExporter, NcnnExporter], ids=["openvino", "ncnn"])
def one(request: pytest.FixtureRequest) -> Exporter:
    return _available(request.param())


def _proven(one: Exporter, model: LayeredModel) -> tuple[bytes, float]:
    onnx = export_onnx(model)
    build = one.export(model, onnx)
    session = one.session(build, OnnxSession(onnx).input_names, [tensor.name for tensor in model.outputs])
    return build, prove_session(model, session, None, one.title)


@pytest.mark.parametrize(
    ("module", "samples"),
    [
        (Tabular, (torch.rand(2, 4), torch.rand(2, 6))),
        (Shuffled, (torch.rand(2, 3, 4, 4),)),
        (Recurrent, (torch.rand(2, 5, 4),)),
    ],
)
def test_models_of_all_kinds_compute_the_same(
    one: Exporter, module: type[nn.Module], samples: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    model = _layered(module(), samples, tmp_path)
    build, difference = _proven(one, model)
    assert difference < 1e-5
    loaded = runtime(one.runtime).load(build, threads=1)
    for count in (1, 5):
        feeds = {
            tensor.name: torch.rand(count, *sample.shape[1:])
            for tensor, sample in zip(model.inputs, samples, strict=True)
        }
        got = loaded.run({name: values.numpy() for name, values in feeds.items()})
        with torch.no_grad():
            wanted = model.call(feeds)
        assert set(got) == set(wanted)
        for name, values in wanted.items():
            np.testing.assert_allclose(got[name], values.numpy(), atol=1e-5)
    loaded.close()


def test_the_same_model_gives_the_same_bytes(one: Exporter, trained: Trained) -> None:
    model = load_pt2(trained.model)
    assert one.export(model, trained.onnx) == one.export(model, trained.onnx)


class _Altered:
    """A session whose first output is off by a share of itself."""

    def __init__(self, session: Any, share: float) -> None:
        self._session, self._share = session, share
        self.names, self.input_names = session.names, session.input_names

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found = self._session.run(inputs)
        return {name: values * np.float32(1 + self._share) for name, values in found.items()}


def test_a_build_that_differs_is_refused_by_the_runtimes_name(one: Exporter, trained: Trained) -> None:
    model = load_pt2(trained.model)
    session = one.session(one.export(model, trained.onnx), ["image"], ["output"])
    assert prove_session(model, session, trained.validation_arrays, one.title) < 1e-4
    with pytest.raises(InvalidModel, match=f"{one.title} and PyTorch differ by .* use another runtime"):
        prove_session(model, _Altered(session, 0.02), trained.validation_arrays, one.title)


def test_what_ncnn_cannot_express_is_refused_with_its_name(tmp_path: Path) -> None:
    one = _available(NcnnExporter())
    model = _layered(Several(), (torch.randint(0, 20, (2, 5)), torch.rand(2, 1)), tmp_path)
    with pytest.raises(InvalidModel, match=r"ncnn.*use another runtime"):
        _proven(one, model)


def test_a_failure_of_ncnn_is_a_refusal(trained: Trained) -> None:
    one = _available(NcnnExporter())
    model = load_pt2(trained.model)
    members = unpack(one.export(model, trained.onnx), MEMBERS)
    members["model.bin"] = members["model.bin"][:-8]
    session = one.session(pack(members), ["image"], ["output"])
    with pytest.raises(InvalidModel, match="does not run in ncnn with a batch of 16"):
        prove_session(model, session, trained.validation_arrays, one.title)


def test_builds_for_several_runtimes_lie_beside_one_lineage(trained: Trained, tmp_path: Path) -> None:
    names = ["onnxruntime", "openvino", "ncnn"]
    for name in names[1:]:
        _available({"openvino": OpenVinoExporter, "ncnn": NcnnExporter}[name]())
    out = tmp_path / "out"
    facts = compress_local(trained.model, trained.data, Recipe.from_yaml(PRUNED), out, runtimes=names)
    assert [(build.runtime, build.file) for build in facts.builds] == [
        ("onnxruntime", "build.onnx"),
        ("openvino", "build.openvino"),
        ("ncnn", "build.ncnn"),
    ]
    image = {"image": trained.validation_arrays.inputs["image"][:7]}
    outputs = []
    for build in facts.builds:
        content = (out / build.file).read_bytes()
        assert len(content) == build.size_bytes and (build.largest_difference or 0.0) < 1e-4
        loaded = runtime(build.runtime).load(content, threads=1)
        outputs.append(loaded.run(image)["output"])
        loaded.close()
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-4)
    np.testing.assert_allclose(outputs[2], outputs[0], atol=1e-4)


def test_a_runtime_alone_leaves_no_onnx_file(trained: Trained, tmp_path: Path) -> None:
    _available(OpenVinoExporter())
    facts = compress_local(
        trained.model, trained.data, Recipe.from_yaml(PRUNED), tmp_path / "out", runtimes=["openvino"]
    )
    assert [build.file for build in facts.builds] == ["build.openvino"] and not facts.notes
    assert not (tmp_path / "out" / "build.onnx").exists()


def test_a_runtime_that_cannot_is_a_note_beside_those_that_can(tmp_path: Path) -> None:
    _available(NcnnExporter())
    path = export(Several().eval(), (torch.randint(0, 20, (2, 5)), torch.rand(2, 1)), tmp_path / "m.pt2")
    facts = compress_local(path, None, Recipe.original(), tmp_path / "both", runtimes=["onnxruntime", "ncnn"])
    assert [build.runtime for build in facts.builds] == ["onnxruntime"]
    assert facts.notes and facts.notes[0].startswith("there is no build for ncnn: ")
    with pytest.raises(InvalidModel, match="ncnn"):
        compress_local(path, None, Recipe.original(), tmp_path / "alone", runtimes=["ncnn"])
    assert not (tmp_path / "alone").exists()


def test_what_cannot_work_is_refused_first(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        UsageError, match="no builds can be made for 'abacus'; choose among ncnn, onnxruntime, onnxruntime-cuda"
    ):
        compress_local(trained.model, trained.data, Recipe.from_yaml(PRUNED), out, runtimes=["abacus"])
    with pytest.raises(InvalidRecipe, match="whose int8-static builds are not for OpenVINO"):
        compress_local(trained.model, trained.data, named_recipe("int8-static"), out, runtimes=["openvino"])
    with pytest.raises(InvalidModel, match="give the model as a .pt2"):
        compress_local(trained.fixed, trained.data, Recipe.original(), out, runtimes=["openvino"])
    assert not out.exists()
    with pytest.raises(UsageError):
        exporter("abacus")
    assert known() == [
        "ncnn",
        "onnxruntime",
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "openvino",
        "tensorrt",
        "torch_tensorrt",
    ]


def test_a_build_for_a_gpu_is_the_onnx_file(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gpu = ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]
    compress_local(trained.model, trained.data, Recipe.original(), out, runtimes=["onnxruntime", *gpu])
    builds = sorted(out.rglob("*.onnx"))
    assert [path.name for path in builds] == ["build.onnx", *(f"build.{name}.onnx" for name in gpu)]
    assert len({path.read_bytes() for path in builds}) == 1


def _half(onnx: bytes) -> bytes:
    return to_half(load_model_from_string(onnx), [])


class Attentive(nn.Module):
    """Attention behind an embedding of whole numbers; what it returns is a view of what a kernel laid out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.attend = nn.Embedding(11, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        values = self.words(words)
        return self.attend(values, values, values, need_weights=False)[0].mean(1)


LISTED = [
    (Tabular, (torch.rand(2, 4), torch.rand(2, 6))),
    (Shuffled, (torch.rand(2, 3, 4, 4),)),
    (Attentive, (torch.randint(0, 11, (2, 5)),)),
]


@pytest.mark.parametrize(("module", "samples"), LISTED, ids=lambda one: getattr(one, "__name__", ""))
def test_a_list_of_operators_computes_the_same_when_it_is_exported_anew(
    module: type[nn.Module], samples: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    one = TorchTensorRtExporter()
    model = _layered(module(), samples, tmp_path)
    build, difference = _proven(one, model)
    assert difference < 1e-6 and build == one.export(model, b"")
    # As on a device: one batch, by the torch that is there.
    network = read(build)
    feeds = tuple(sample[:1].repeat(3, *[1] * (sample.dim() - 1)) for sample in samples)
    program = torch.export.export(rebuild(network), feeds, strict=False)
    assert [port.name for port in network.inputs] == [tensor.name for tensor in model.inputs]
    with torch.no_grad():
        got = program.module()(*feeds)
        wanted = model.call(dict(zip([tensor.name for tensor in model.inputs], feeds, strict=True)))
    for value, (name, expected) in zip(got, wanted.items(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4, msg=name)
    # Nothing of it is left open: an engine has fixed sizes.
    assert all(
        isinstance(size, int) for node in program.graph.nodes for size in getattr(node.meta.get("val"), "shape", ())
    )


def test_half_floats_lie_within_the_same_inputs_and_outputs(tmp_path: Path) -> None:
    one, (module, samples) = TorchTensorRtExporter(), LISTED[-1]
    model = _layered(module(), samples, tmp_path)
    onnx = export_onnx(model)
    half = one.export_quantized(_half(onnx), model)
    assert {weight.dtype for weight in read(half).weights} <= {"float16", "int64"}
    feeds = {tensor.name: sample.numpy() for tensor, sample in zip(model.inputs, samples, strict=True)}
    names = [tensor.name for tensor in model.outputs]
    found, whole = (one.session(build, [], names).run(feeds) for build in (half, one.export(model, onnx)))
    for name in names:
        assert found[name].dtype == whole[name].dtype == np.float32
        assert 0 < np.abs(found[name] - whole[name]).max() < 0.02
    # The model itself stays as it is.
    assert all(parameter.dtype == torch.float32 for parameter in model.module.parameters())


def test_what_half_builds_keep_in_floats_is_not_halved_silently(tmp_path: Path) -> None:
    model = _layered(Tabular(), LISTED[0][1], tmp_path)
    graph = load_model_from_string(export_onnx(model))
    kept = next(node.name for node in graph.graph.node if node.op_type == "Gemm")
    with pytest.raises(InvalidModel, match=f"keeps '{kept}' in 32 bits"):
        TorchTensorRtExporter().export_quantized(to_half(graph, [kept]), model)


def test_pairs_of_q_and_dq_are_not_for_torch_tensorrt(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="whose int8-static builds are not for torch_tensorrt"):
        compress_local(trained.model, trained.data, named_recipe("int8-static"), tmp_path, runtimes=["torch_tensorrt"])
