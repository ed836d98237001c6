"""A variant's network that its user trained: other numbers pass, another network is refused where it first differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import fleetfit
from fleetfit.compress.graph.layered import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.intake.recovered import take_over
from fleetfit.core.errors import InvalidModel

from .conftest import CASES

Archives = Callable[[str], Path]


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_training_changes_is_taken_over(name: str, archive_of: Archives, tmp_path: Path) -> None:
    load_pt2(archive_of(name)).save_pt2(tmp_path / "variant.pt2")
    module = fleetfit.trainable(tmp_path)
    samples = load_pt2(tmp_path / "variant.pt2").sample_inputs
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    result = module.train()(**samples)
    values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else (result,)
    sum(value.square().sum() for value in values).backward()
    optimizer.step()
    fleetfit.export(module.eval(), samples, tmp_path / "trained.pt2")
    variant, trained = load_pt2(tmp_path / "variant.pt2"), load_pt2(tmp_path / "trained.pt2")
    changed, tensors = take_over(variant, trained)
    assert 0 < changed <= tensors
    for key, value in trained.call(samples).items():
        torch.testing.assert_close(variant.call(samples)[key], value)
    # The network that is kept is one that can be trained and pushed again.
    variant.save_pt2(tmp_path / "recovered.pt2")
    assert take_over(load_pt2(tmp_path / "recovered.pt2"), trained) == (0, tensors)


class Mixed(nn.Module):
    """Every kind of thing that may differ: layers with and without weights, calls, constants, tied weights, a mask."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.hidden = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.tensor([True, True, False, True, True, True]))
        self.batch = nn.BatchNorm1d(6)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.batch(self.embedding(ids).mean(1)) * self.scale
        y = nn.functional.leaky_relu(self.hidden(x), 0.1) - x * 0.5
        y = torch.where(self.mask, self.norm(y), y)
        return self.head(torch.sigmoid(y)), y


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> LayeredModel:
    path = tmp_path_factory.mktemp("mixed") / "model.pt2"
    torch.manual_seed(0)
    return load_pt2(fleetfit.export(Mixed().eval(), torch.arange(6).reshape(2, 3), path))


def other_numbers(model: LayeredModel, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.module.parameters(), *model.module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_((torch.rand(tensor.shape, generator=generator) * scale).to(tensor.dtype))


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1e-6, 0.3, 5.0]))
def test_any_numbers_pass_and_are_those_of_the_file(mixed: LayeredModel, seed: int, scale: float) -> None:
    variant, trained = mixed.clone(), mixed.clone()
    other_numbers(trained, seed, scale)
    _, tensors = take_over(variant, trained)
    assert tensors == len(list(variant.module.parameters())) + len(list(variant.module.buffers()))
    for name, value in trained.module.state_dict().items():
        assert torch.equal(variant.module.state_dict()[name], value), name
    assert variant.parameters_count() == mixed.parameters_count(), "tied weights stay tied"


Change = Callable[[fx.GraphModule, fx.Node], bool]


def another_target(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is torch.ops.aten.add.Tensor or len(node.args) != 2:
        return False
    node.target = torch.ops.aten.add.Tensor
    return True


def another_constant(module: fx.GraphModule, node: fx.Node) -> bool:
    for at, value in enumerate(node.args):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            node.update_arg(at, value + 1)
            return True
    return False


def another_connection(module: fx.GraphModule, node: fx.Node) -> bool:
    inputs = node.all_input_nodes
    sources = [other for other in module.graph.nodes if other.op in ("call_module", "placeholder")]
    before = list(module.graph.nodes)[: list(module.graph.nodes).index(node)]
    other = next((one for one in sources if one in before and one not in inputs), None)
    if other is None or not inputs or node.op == "output":
        return False
    node.replace_input_with(inputs[0], other)
    return True


def one_more(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op not in ("call_module", "call_function"):
        return False
    with module.graph.inserting_after(node):
        more = module.graph.call_function(torch.ops.aten.relu.default, (node,))
    node.replace_all_uses_with(more, delete_user_cb=lambda user: user is not more)
    return True


def one_less(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or len(node.all_input_nodes) != 1:
        return False
    node.replace_all_uses_with(node.all_input_nodes[0])
    module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    return True


def another_layer(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module.set_submodule(str(node.target), nn.Hardtanh())
    return True


def another_setting(module: fx.GraphModule, node: fx.Node) -> bool:
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    for name in ("eps", "negative_slope", "padding_idx"):
        if layer is not None and hasattr(layer, name):
            setattr(layer, name, 1)
            return True
    return False


def another_width(module: fx.GraphModule, node: fx.Node) -> bool:
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(layer, nn.Linear):
        return False
    layer.weight = nn.Parameter(torch.zeros(layer.out_features + 1, layer.in_features))
    return True


def another_dtype(module: fx.GraphModule, node: fx.Node) -> bool:
    layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if layer is None or not list(layer.parameters()):
        return False
    layer.double()
    return True


def untied(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.target != "embedding_1":
        return False
    module.get_submodule("embedding_1").weight = nn.Parameter(module.get_parameter("embedding.weight").detach().clone())
    return True


def frozen(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.target != "scale":
        return False
    value = module.get_parameter("scale").detach()
    del module._parameters["scale"]
    module.register_buffer("scale", value)
    return True


def renamed(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or "." in str(node.target):
        return False
    layer = module.get_submodule(str(node.target))
    if not list(layer.parameters()):
        return False
    module.add_module("renamed", layer)
    delattr(module, str(node.target))
    node.target = "renamed"
    return True


CHANGES: list[Change] = [
    another_target, another_constant, another_connection, one_more, one_less, another_layer, another_setting,
    another_width, another_dtype, untied, frozen, renamed,
]  # fmt: skip


@pytest.fixture(scope="module")
def places(mixed: LayeredModel) -> list[tuple[Change, int]]:
    """Every change at every node where it can be made."""
    count = len(mixed.module.graph.nodes)
    return [(change, at) for change in CHANGES for at in range(count) if changed_at(mixed, change, at) is not None]


def changed_at(model: LayeredModel, change: Change, at: int) -> LayeredModel | None:
    other = model.clone()
    return other if change(other.module, list(other.module.graph.nodes)[at]) else None


def test_every_change_can_be_made(places: list[tuple[Change, int]]) -> None:
    assert {change for change, _ in places} == set(CHANGES)


@settings(deadline=None)
@given(data=st.data())
def test_any_changed_structure_is_refused(
    mixed: LayeredModel, places: list[tuple[Change, int]], data: st.DataObject
) -> None:
    trained = changed_at(mixed, *data.draw(st.sampled_from(places)))
    assert trained is not None
    variant = mixed.clone()
    with pytest.raises(InvalidModel, match="it is not the variant's network: at .*fleetfit.trainable"):
        take_over(variant, trained)
    assert all(
        torch.equal(value, mixed.module.state_dict()[name]) for name, value in variant.module.state_dict().items()
    )


def test_the_first_place_that_differs_is_named(mixed: LayeredModel) -> None:
    trained = mixed.clone()
    trained.module.get_submodule("norm").eps = 0.5
    trained.module.get_submodule("embedding_1").weight = nn.Parameter(torch.zeros(9, 6))
    with pytest.raises(InvalidModel, match=r"at the layer norm the variant has 'norm LayerNorm\(.*eps=1e-05.*eps=0.5"):
        take_over(mixed.clone(), trained)


def test_how_fast_batch_norms_learnt_does_not_matter(mixed: LayeredModel) -> None:
    trained = mixed.clone()
    trained.module.get_submodule("batch").momentum = 0.01
    assert take_over(mixed.clone(), trained)[0] == 0


def test_ports_masks_and_numbers_that_are_none(mixed: LayeredModel) -> None:
    trained = mixed.clone()
    trained.outputs = [trained.outputs[0].model_copy(update={"name": "logits"}), trained.outputs[1]]
    with pytest.raises(InvalidModel, match="at the output 1 the variant has 'output_0, float32"):
        take_over(mixed.clone(), trained)
    trained = mixed.clone()
    trained.module.get_buffer("mask")[0] = False
    with pytest.raises(InvalidModel, match="mask holds whole numbers or truth values"):
        take_over(mixed.clone(), trained)
    trained = mixed.clone()
    with torch.no_grad():
        trained.module.get_parameter("hidden.bias")[2] = float("nan")
    with pytest.raises(InvalidModel, match=r"hidden.bias holds NaN or infinity.*smaller learning rate"):
        take_over(mixed.clone(), trained)


def test_zeros_that_must_stay_are_asked_for(mixed: LayeredModel) -> None:
    variant = mixed.clone()
    with torch.no_grad():
        variant.module.get_parameter("hidden.weight")[:, ::2] = 0
    variant.sparse = {"hidden.weight"}
    trained = variant.clone()
    trained.sparse = set()
    other_numbers(trained, 1, 1.0)
    with pytest.raises(InvalidModel, match=r"hidden.weight has 18 numbers that pruning made zero"):
        take_over(variant.clone(), trained)
    with torch.no_grad():
        trained.module.get_parameter("hidden.weight")[:, ::2] = 0
    take_over(variant, trained)
    assert variant.sparse == {"hidden.weight"}, "also where the file forgot it"
