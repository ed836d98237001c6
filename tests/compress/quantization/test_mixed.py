"""Which operators stay in floats, found by measuring."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.exporter import export_onnx, predict_onnx
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.quantization import quantize_onnx
from fleetfit.compress.quantization.error import output_errors
from fleetfit.compress.quantization.sensitivity import groups_of, scan
from fleetfit.core.errors import InvalidRecipe


class Uneven(nn.Module):
    """An output that 8 bits carry well, and one that they cannot: its input has one huge column that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
        self.fine = nn.Linear(12, 2)
        with torch.no_grad():
            self.fine.weight[:, 0] = 0.0

    def forward(self, calm: torch.Tensor, wild: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"coarse": self.body(calm), "fine": self.fine(wild)}


def _data(count: int, seed: int) -> Arrays:
    calm, wild = np.random.default_rng(seed).normal(size=(2, count, 12)).astype(np.float32)
    wild[:, 0] *= 1000
    return Arrays({"calm": calm, "wild": wild}, None)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Uneven().eval()
    sample = {name: torch.from_numpy(values) for name, values in _data(3, 0).inputs.items()}
    return export_onnx(load_pt2(export(module, sample, tmp_path_factory.mktemp("uneven") / "m.pt2")))


def _errors(one: bytes, other: bytes) -> dict[str, float]:
    data = _data(200, 9)
    return output_errors(predict_onnx(one, data, None), predict_onnx(other, data, None))


def test_only_the_output_that_integers_harm_stays_in_floats(uneven: bytes) -> None:
    said: list[float] = []
    context = PassContext(_data(400, 1), _data(100, 2), None, "", "", 0, lambda part, activity: said.append(part))
    plain = _errors(uneven, quantize_onnx(uneven, Quantize(), context).content)
    assert plain["fine"] > 0.5 and plain["coarse"] < 0.15
    said.clear()
    built = quantize_onnx(uneven, Quantize(keep_float="auto", max_error=0.15), context)
    assert (built.integer_operators, built.total_operators) == (2, 3)
    mixed = _errors(uneven, built.content)
    assert mixed["fine"] < 1e-4 and mixed["coarse"] < 0.15
    assert said == sorted(said) and said[-1] <= 1 and len(said) > 3
    assert any(note.startswith("kept in floats, found by measuring") for note in built.notes)
    again = quantize_onnx(uneven, Quantize(keep_float="auto", max_error=0.15), context)
    assert again.content == built.content


@pytest.mark.parametrize("parameters", [{"mode": "dynamic"}, {"dtype": "int4"}])
def test_other_kinds_are_mixed_too(uneven: bytes, parameters: dict[str, str]) -> None:
    context = PassContext(_data(400, 1), None, None, "", "", 0, lambda part, activity: None)
    plain = _errors(uneven, quantize_onnx(uneven, Quantize.model_validate(parameters), context).content)
    limit = max(plain.values()) / 2
    wanted = Quantize.model_validate({**parameters, "keep_float": "auto", "max_error": limit})
    assert max(_errors(uneven, quantize_onnx(uneven, wanted, context).content).values()) < limit


def test_a_tolerance_that_no_mixture_meets_is_refused_with_what_is_reached(uneven: bytes) -> None:
    context = PassContext(_data(400, 1), None, None, "", "", 0, lambda part, activity: None)
    with pytest.raises(InvalidRecipe, match=r"misses 1e-07"):
        quantize_onnx(uneven, Quantize(keep_float="auto", max_error=1e-7), context)
    with pytest.raises(InvalidRecipe, match="--data"):
        quantize_onnx(uneven, Quantize(keep_float="auto"), replace(context, train=None))


def _scanned(errors: list[float], tolerance: float) -> tuple[set[int], int]:
    """A scan in which every operator adds its own error."""

    def build(keep: Collection[str]) -> bytes:
        return ",".join(sorted(keep)).encode()

    def error_of(content: bytes) -> float:
        kept = set(content.decode().split(","))
        return float(np.sqrt(sum(e**2 for at, e in enumerate(errors) if str(at) not in kept)))

    groups = [frozenset({str(at)}) for at in range(len(errors))]
    found = scan(build, error_of, groups, tolerance, lambda part: None)
    assert found.after == pytest.approx(error_of(build(found.keep)))
    assert found.before == pytest.approx(error_of(b""))
    return {int(name) for name in found.keep}, found.trials


@given(st.lists(st.floats(1e-4, 10), min_size=2, max_size=48), st.floats(1e-3, 20))
@settings(max_examples=80, deadline=None)
def test_a_scan_keeps_as_few_as_hold(errors: list[float], tolerance: float) -> None:
    aim = 0.9 * tolerance
    if min(errors) > aim:
        with pytest.raises(InvalidRecipe, match="max_error"):
            _scanned(errors, tolerance)
        return
    kept, trials = _scanned(errors, tolerance)
    rest = np.sqrt(sum(e**2 for at, e in enumerate(errors) if at not in kept))
    assert rest <= aim * (1 + 1e-9) and trials <= 110
    # Errors add up here, so the fewest that hold are the largest.
    fewest = next(
        count
        for count in range(len(errors) + 1)
        if np.sqrt(sum(e**2 for e in sorted(errors, reverse=True)[count:])) <= aim * (1 + 1e-9)
    )
    assert len(kept) <= fewest


def test_cheap_operators_belong_to_the_product_before_them() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "v"], ["c"], name="second"),
        helper.make_node("Cos", ["b"], ["d"], name="cos"),
        helper.make_node("Sigmoid", ["d"], ["e"], name="sigmoid"),
        helper.make_node("Add", ["c", "e"], ["y"], name="add"),
    ]
    shape = [2, 2]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model: onnx.ModelProto = helper.make_model(graph)
    everything_but_cos = {"first", "relu", "second", "sigmoid", "add"}
    assert groups_of(model, everything_but_cos) == [{"first", "relu", "sigmoid"}, {"second", "add"}]
    del graph.node[:]
    graph.node.extend(helper.make_node("MatMul", [f"x{at}", "w"], [f"x{at + 1}"], name=f"n{at}") for at in range(100))
    many = groups_of(helper.make_model(graph), {f"n{at}" for at in range(100)})
    assert len(many) <= 48 and sum(map(len, many)) == 100
