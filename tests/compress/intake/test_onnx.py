"""ONNX files: facts of a good one, refusal of the others."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetfit.compress.intake.onnx import check_onnx
from fleetfit.compress.tasks import Tensor
from fleetfit.core.errors import InvalidModel


def model(batch: int | str = "n", weight: np.ndarray | None = None) -> onnx.ModelProto:
    values = np.arange(12, dtype=np.float32).reshape(3, 4) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(values, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def written(path: Path, made: onnx.ModelProto) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def test_facts(tmp_path: Path) -> None:
    facts = check_onnx(written(tmp_path / "model", model()))
    assert facts.inputs == [Tensor(name="x", dtype="float32", shape=[-1, 3])]
    assert facts.outputs == [Tensor(name="y", dtype="float32", shape=[-1, 4])]
    assert (facts.parameters, facts.macs, facts.trainable) == (12, 12, False)


def test_a_fixed_batch_is_kept_and_noted(tmp_path: Path) -> None:
    facts = check_onnx(written(tmp_path / "model", model(1)))
    assert facts.inputs[0].shape == [1, 3] and facts.outputs[0].shape == [1, 4]
    assert any("fixed batch" in note for note in facts.notes)


def test_what_torch_exports_is_accepted(tmp_path: Path) -> None:
    import torch

    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 5)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.randn(2, 1, 8, 8),),
            str(tmp_path / "model"),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    facts = check_onnx(tmp_path / "model")
    assert facts.inputs[0].shape == [-1, 1, 8, 8]
    assert facts.parameters == sum(p.numel() for p in net.parameters())
    assert facts.macs == 36 * 2 * 9 + 72 * 5


def external() -> onnx.ModelProto:
    made = model()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return made


def external_in_a_function() -> onnx.ModelProto:
    made = model()
    constant = helper.make_node("Constant", [], ["c"], value=external().graph.initializer[0])
    function = helper.make_function(
        "own", "Shift", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "c"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    made.functions.append(function)
    return made


def foreign_in_a_function() -> onnx.ModelProto:
    made = model()
    node = helper.make_node("Relu", ["a"], ["b"], domain="my.company")
    made.functions.append(helper.make_function("own", "Shift", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))
    return made


def external_and_sparse() -> onnx.ModelProto:
    made = model()
    values = TensorProto(dims=[1], data_type=TensorProto.FLOAT, name="v", data_location=TensorProto.EXTERNAL)
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[4])
    made.graph.node.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    return made


def absurd() -> onnx.ModelProto:
    made = model()
    made.graph.initializer[0].dims[0] = 1 << 50
    return made


def short() -> onnx.ModelProto:
    made = model()
    made.graph.initializer[0].raw_data = b"1234"
    return made


def foreign() -> onnx.ModelProto:
    made = model()
    made.graph.node[1].domain = "my.company"
    return made


def unknown() -> onnx.ModelProto:
    made = model()
    made.graph.node[1].op_type = "NoSuchOperator"
    return made


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (external(), "keeps weights in another file"),
        (external_in_a_function(), "keeps weights in another file"),
        (external_and_sparse(), "keeps weights in another file"),
        (absurd(), "absurd size"),
        (short(), "unreadable weight|breaks the ONNX standard"),
        (foreign(), "does not have"),
        (foreign_in_a_function(), "does not have"),
        (unknown(), "breaks the ONNX standard|does not run"),
        (model(weight=np.full((3, 4), np.nan, np.float32)), "NaN or infinity in its weight"),
        (model(weight=np.ones((5, 4), np.float32)), "breaks the ONNX standard|does not run"),
    ],
    ids=[
        *("external", "external in a function", "external and sparse", "absurd", "short", "foreign"),
        *("foreign in a function", "unknown", "nan", "shapes"),
    ],
)
def test_bad_files_are_refused(made: onnx.ModelProto, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=says) as caught:
        check_onnx(written(tmp_path / "model", made))
    assert caught.value.message.endswith(".") and "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"PK\x03\x04"])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(InvalidModel):
        check_onnx(tmp_path / "model")


def test_every_cut_is_refused_or_harmless(tmp_path: Path) -> None:
    content = model().SerializeToString()
    for end in range(0, len(content), 7):
        (tmp_path / "model").write_bytes(content[:end])
        with pytest.raises(InvalidModel):
            check_onnx(tmp_path / "model")
