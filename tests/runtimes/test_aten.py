"""Networks as lists of operators: made anew as they were, and refused in a sentence where they are no such thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.archive import pack, unpack
from fleetfit.runtimes.aten import FORMAT, MEMBERS, Node, read, write
from fleetfit.runtimes.aten_module import rebuild
from fleetfit.runtimes.contract import is_one_sentence, rows
from fleetfit.runtimes.refusal import Port
from fleetfit.runtimes.samples import NETWORK_OUTPUT, SAMPLES, WEIGHTS, aten_affine, network_inputs


def graph_of(build: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unpack(build, MEMBERS)["graph.json"])
    return found


def changed(change: Callable[[dict[str, Any]], Any], content: bytes | None = None) -> bytes:
    """The build `good` with its graph changed."""
    members = unpack(aten_affine(), MEMBERS)
    graph = json.loads(members["graph.json"])
    change(graph)
    return pack(
        {"graph.json": json.dumps(graph).encode(), "weights": members["weights"] if content is None else content}
    )


def test_a_network_computes_what_it_did() -> None:
    import torch

    network = read(aten_affine())
    assert network.inputs == [Port("x", "float32", (-1, 4))] and list(network.outputs) == ["scores", "positive"]
    module = rebuild(network)
    for count in (1, 5):
        scores, positive = module(torch.from_numpy(rows(count)))
        np.testing.assert_allclose(scores.numpy(), rows(count) @ WEIGHTS, atol=1e-5)
        assert torch.equal(positive, scores.clamp(min=0))
    (scores,) = rebuild(read(SAMPLES["aten"].network()))(torch.from_numpy(network_inputs(len(NETWORK_OUTPUT))))
    np.testing.assert_allclose(scores.numpy(), NETWORK_OUTPUT, atol=1e-4)


def test_every_kind_of_value_arrives() -> None:
    import torch

    nodes = [
        Node("torch.ops.aten.to.dtype", [{"input": 0}, {"dtype": "float64"}], {}),
        Node("torch.ops.aten.sym_size.int", [{"input": 0}, 0], {}),
        Node(
            "torch.ops.aten.full.default",
            [[{"node": 1}, 2], 0.5],
            {
                "dtype": {"dtype": "float64"},
                "layout": {"layout": "strided"},
                "device": {"device": None},
                "pin_memory": False,
            },
        ),
        Node("torch.ops.aten.einsum.default", [{"text": "ij,kj->ik"}, [{"node": 0}, {"weight": 0}]], {}),
        Node("torch.ops.aten.split.Tensor", [{"node": 3}, 1, 1], {}),
        Node("_operator.getitem", [{"node": 4}, 1], {}),
        Node("torch.ops.aten.clone.default", [{"node": 5}], {"memory_format": {"memory_format": "contiguous_format"}}),
        Node("_operator.mul", [{"node": 1}, 3], {}),
        Node("torch.ops.aten.full.default", [[{"node": 7}], 1.0], {}),
    ]
    weight = np.arange(8, dtype=np.float64).reshape(2, 4)
    outputs = {"halves": {"node": 2}, "second": {"node": 6}, "ones": {"node": 8}}
    build = write([Port("x", "float32", (-1, 4))], outputs, dict.fromkeys(outputs, True), [weight], nodes)
    halves, second, ones = rebuild(read(build))(torch.from_numpy(rows(3)))
    assert halves.tolist() == [[0.5, 0.5]] * 3 and halves.dtype == torch.float64 and len(ones) == 9
    np.testing.assert_allclose(second.numpy(), (rows(3) @ weight.T)[:, 1:], atol=1e-6)
    assert build == write([Port("x", "float32", (-1, 4))], outputs, dict.fromkeys(outputs, True), [weight], nodes)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "calls 'torch.ops.aten.from_file.default'": lambda g: g["nodes"][0].__setitem__(
        0, "torch.ops.aten.from_file.default"
    ),
    "calls 'torch.ops.prim.device.default'": lambda g: g["nodes"][0].__setitem__(0, "torch.ops.prim.device.default"),
    "calls 'os.system'": lambda g: g["nodes"][0].__setitem__(0, "os.system"),
    "calls 'torch.load'": lambda g: g["nodes"][0].__setitem__(0, "torch.load"),
    "calls '_operator.attrgetter'": lambda g: g["nodes"][0].__setitem__(0, "_operator.attrgetter"),
    "of format '7'": lambda g: g.__setitem__("format", FORMAT + 6),
    "cannot be read": lambda g: g["nodes"][0].__setitem__(1, [{"node": 0}]),
    "graph cannot be read": lambda g: g["nodes"][0].__setitem__(1, [{"weight": 1}]),
    "build's graph cannot be read": lambda g: g["nodes"][0].__setitem__(1, ["text"]),
    "the build's graph cannot be read": lambda g: g["nodes"][0].__setitem__(1, [{"text": "../../etc/passwd"}]),
    "graph cannot be read; build it": lambda g: g["nodes"][0].__setitem__(1, [{"dtype": "__class__"}]),
    "cannot be read; build it again": lambda g: g["nodes"][0].__setitem__(2, {"a=b": 1}),
    "graph cannot": lambda g: g["inputs"][0].__setitem__("dtype", "object"),
    "cannot be": lambda g: g["outputs"][0].__setitem__("value", {"device": "cuda"}),
    "weights are shorter": lambda g: g["weights"][0].__setitem__("offset", 1 << 40),
    "be read": lambda g: g["weights"][0].__setitem__("shape", [-4, 3]),
}


@pytest.mark.parametrize("words", CHANGES)
def test_what_is_no_list_of_operators_is_refused(words: str) -> None:
    with pytest.raises(InvalidModel) as refused:
        read(changed(CHANGES[words]))
    assert words in refused.value.message and is_one_sentence(refused.value)


def test_an_operator_that_this_torch_lacks_is_named() -> None:
    build = changed(lambda g: g["nodes"][0].__setitem__(0, "torch.ops.aten.not_yet_invented.default"))
    with pytest.raises(InvalidModel, match=r"has no operator 'not_yet_invented\.default'") as refused:
        rebuild(read(build))
    assert is_one_sentence(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 40) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["node", "text", "name", "shape"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(st.sampled_from(["inputs", "outputs", "weights", "nodes", "format"]), JSON, st.booleans())
def test_whatever_stands_in_a_graph_is_read_or_refused(part: str, value: Any, whole: bool) -> None:
    def change(graph: dict[str, Any]) -> None:
        if whole or part == "format":
            graph[part] = value
        else:
            graph[part] = [value]

    try:
        read(changed(change))
    except InvalidModel as error:
        assert is_one_sentence(error)


@given(st.binary(max_size=60))
def test_weights_of_any_length_are_read_or_refused(content: bytes) -> None:
    try:
        assert len(read(changed(lambda graph: None, content)).content) >= WEIGHTS.nbytes
    except InvalidModel as error:
        assert is_one_sentence(error) and len(content) < WEIGHTS.nbytes
