"""What stands before and behind a model: parts that fit are described, others are refused with both sides named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fleetfit.compress.intake.parts import _can_be, check_parts
from fleetfit.compress.tasks import ModelFacts, PartName, Tensor
from fleetfit.core.errors import InvalidModel

Shape = list[int | str]
CORE = ModelFacts(
    inputs=[Tensor(name="x", dtype="float32", shape=[-1, 4])],
    outputs=[Tensor(name="scores", dtype="float32", shape=[-1, 3])],
    parameters=12,
    macs=12,
    recognised_share=1.0,
    trainable=True,
)


def part(
    path: Path,
    operators: list[tuple[str, str, str, dict[str, Any]]],
    inputs: dict[str, tuple[int, Shape]],
    outputs: dict[str, tuple[int, Shape]],
) -> Path:
    """An ONNX file of operators, each with one input, one output and attributes."""
    nodes = [helper.make_node(kind, [a], [b], **more) for kind, a, b, more in operators]
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, *found) for name, found in inputs.items()],
        [helper.make_tensor_value_info(name, *found) for name, found in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def pre(
    folder: Path, *, gives: str = "x", dtype: int = TensorProto.FLOAT, width: int | str = 4, batch: int | str = "N"
) -> Path:
    return part(
        folder / "pre",
        [("Cast", "pixels", gives, {"to": dtype})],
        {"pixels": (TensorProto.UINT8, [batch, width])},
        {gives: (dtype, [batch, width])},
    )


def post(
    folder: Path, *, takes: str = "scores", dtype: int = TensorProto.FLOAT, width: int | str = 3, kind: str = "Softmax"
) -> Path:
    found: tuple[int, Shape] = (dtype, ["N", width])
    return part(folder / "post", [(kind, takes, "chances", {})], {takes: found}, {"chances": found})


def refusal(**files: Path) -> str:
    named: dict[PartName, Path] = {name: path for name, path in files.items() if name in ("pre", "post")}  # type: ignore[misc]
    with pytest.raises(InvalidModel) as refused:
        check_parts(CORE, named)
    return refused.value.message


def test_parts_that_fit_are_described(tmp_path: Path) -> None:
    facts = check_parts(CORE, {"pre": pre(tmp_path), "post": post(tmp_path)})
    assert [(t.name, t.dtype, t.shape) for t in facts.parts["pre"].inputs] == [("pixels", "uint8", [-1, 4])]
    assert [(t.name, t.dtype, t.shape) for t in facts.parts["pre"].outputs] == [("x", "float32", [-1, 4])]
    assert [(t.name, t.shape) for t in facts.parts["post"].outputs] == [("chances", [-1, 3])]
    assert facts.model_copy(update={"parts": {}}) == CORE
    assert list(check_parts(CORE, {"post": post(tmp_path)}).parts) == ["post"]


def test_what_comes_last_may_read_past_the_model(tmp_path: Path) -> None:
    both = part(
        tmp_path / "pre",
        [("Cast", "pixels", "x", {"to": TensorProto.FLOAT}), ("Identity", "pixels", "seen", {})],
        {"pixels": (TensorProto.UINT8, ["N", 4])},
        {"x": (TensorProto.FLOAT, ["N", 4]), "seen": (TensorProto.UINT8, ["N", 4])},
    )
    last = post(tmp_path, takes="seen", dtype=TensorProto.UINT8, width=4, kind="Identity")
    assert check_parts(CORE, {"pre": both, "post": last}).parts["post"].inputs[0].name == "seen"


def test_free_sizes_of_the_last_part_are_the_models(tmp_path: Path) -> None:
    """A reshape to three numbers runs only with what the model gives, not with any size."""
    shape = helper.make_tensor("three", TensorProto.INT64, [2], [-1, 3])
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["scores", "three"], ["flat"]),
            helper.make_node("Add", ["flat", "scores"], ["y"]),
        ],
        "part",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "M"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "post").write_bytes(model.SerializeToString())
    assert check_parts(CORE, {"post": tmp_path / "post"}).parts["post"].outputs[0].shape == [-1, 3]


def test_what_comes_last_may_be_no_number(tmp_path: Path) -> None:
    """The logarithm of a negative score, say: it is the model's scores that must be numbers."""
    facts = check_parts(CORE, {"post": post(tmp_path, kind="Log")})
    assert facts.parts["post"].outputs[0].name == "chances"


def test_a_part_with_a_fixed_batch_is_noted(tmp_path: Path) -> None:
    notes = check_parts(CORE, {"pre": pre(tmp_path, batch=1)}).notes
    assert any("pre part takes batches of 1 only" in note for note in notes)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gives": "images"}, ("The model takes 'x'", "the pre part gives 'images'")),
        ({"dtype": TensorProto.DOUBLE}, ("The pre part gives 'x' as float64", "the model takes float32")),
        ({"width": 5}, ("The pre part gives 'x' as (-1, 5)", "the model takes (-1, 4)")),
        ({"width": "W"}, ("The pre part takes 'pixels' as (-1, -1)", "free sizes")),
        ({"gives": "scores"}, ("The model takes 'x'", "the pre part gives 'scores'")),
    ],
)
def test_what_does_not_fit_before_is_refused(tmp_path: Path, wrong: dict[str, Any], words: tuple[str, str]) -> None:
    said = refusal(pre=pre(tmp_path, **wrong))
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"takes": "logits"}, ("The post part takes 'logits'", "the model gives 'scores' and the pre part gives 'x'")),
        ({"dtype": TensorProto.DOUBLE}, ("The model gives 'scores' as float32", "the post part takes float64")),
        ({"width": 10}, ("The model gives 'scores' as (-1, 3)", "the post part takes (-1, 10)")),
    ],
)
def test_what_does_not_fit_behind_is_refused(tmp_path: Path, wrong: dict[str, Any], words: tuple[str, str]) -> None:
    said = refusal(pre=pre(tmp_path), post=post(tmp_path, **wrong))
    assert all(word in said for word in words), said


def test_a_name_that_both_give_is_refused(tmp_path: Path) -> None:
    double = part(
        tmp_path / "pre",
        [("Cast", "pixels", "x", {"to": TensorProto.FLOAT}), ("Identity", "x", "scores", {})],
        {"pixels": (TensorProto.UINT8, ["N", 4])},
        {"x": (TensorProto.FLOAT, ["N", 4]), "scores": (TensorProto.FLOAT, ["N", 4])},
    )
    assert "both give 'scores'" in refusal(pre=double)


@pytest.mark.parametrize("name", ["pre", "post"])
def test_an_unreadable_part_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no model" * 20)
    said = refusal(**{name: tmp_path / name})
    assert said.startswith(f"The {name} part cannot be used. The ONNX file is damaged")


sizes = st.lists(st.integers(-1, 5), max_size=4)


@given(sizes, sizes)
def test_shapes_that_can_be_one_another_can_be_so_both_ways(a: list[int], b: list[int]) -> None:
    assert _can_be(a, b) == _can_be(b, a)
    assert _can_be(a, a)
    assert _can_be([-1] * len(a), a)
    if _can_be(a, b):
        assert len(a) == len(b)
