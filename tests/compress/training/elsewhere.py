"""`python elsewhere.py`: train on a device that is pretended; ends with 1 where tensors of two devices meet.

Tensors have no numbers here, only shapes, dtypes and devices (PyTorch's fake tensors), so what is tested is that everything that
training makes follows the model's device, and that the model is back on the processor in the end. In a process of its own: a
device cannot be unregistered.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from fleetfit.compress import compute
from fleetfit.compress.graph import LayeredModel, batches
from fleetfit.compress.passes.base import Arrays, Pass, PassContext
from fleetfit.compress.passes.distill import Distill
from fleetfit.compress.passes.quantize_aware_training import QuantizeAwareTraining
from fleetfit.compress.tasks import Tensor
from fleetfit.compress.training import distillation, fake_quantization

CPU = torch.device("cpu")
STEPS: list[Pass] = [
    Distill(epochs=1, batch=8),
    Distill(epochs=1, batch=8, features="auto", ema=0.9, clip=1.0),
    Distill(epochs=1, batch=8, augment=("flip", "shift", "cutout", "mixup")),
    Distill.model_validate({"epochs": 1, "batch": 8, "outputs": {"output": {"loss": "mse"}}}),
    QuantizeAwareTraining(epochs=1, batch=8),
]


class Pretended(FakeTensorMode):
    """Any number that is asked for is -1, so that outputs are taken for logits; whatever is asked is true."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return -1.0 if args[0].dtype.is_floating_point else 1
        return super().__torch_dispatch__(func, types, args, kwargs)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.stem(x)).relu()).mean((2, 3))
        # Makes a tensor of its own, whose device stands in the graph.
        out: torch.Tensor = self.head(x) + torch.ops.aten.arange.default(4, dtype=torch.float32, device=CPU)
        return out


def layered(width: int) -> LayeredModel:
    module = fx.symbolic_trace(Net(width))
    # A tracer keeps what such a call gives; exported graphs make it anew.
    graph = fx.Graph()
    value_of: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            called = torch.ops.aten.arange.default
            value_of[node] = graph.call_function(called, (4,), {"dtype": torch.float32, "device": CPU})
        else:
            value_of[node] = graph.node_copy(node, lambda one: value_of[one])
    module = fx.GraphModule(module, graph)
    x, y = Tensor(name="x", dtype="float32", shape=[-1, 3, 8, 8]), Tensor(name="output", dtype="float32", shape=[-1, 4])
    return LayeredModel(module, [x], [y], {"x": torch.zeros(4, 3, 8, 8)}, True)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """`nn.Module.to`, which exchanges what parameters hold; pretended ones do not allow it."""
    for owner in module.modules():
        for kind in (owner._parameters, owner._buffers):
            for name, value in kind.items():
                if value is not None:
                    fresh = torch.empty(value.shape, dtype=value.dtype, device=device)
                    kind[name] = nn.Parameter(fresh) if isinstance(value, nn.Parameter) else fresh
    return module


def copied(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    """`copy.deepcopy` of a tensor, which copies the memory that pretended ones have not."""
    if id(tensor) not in memo:
        made = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    found: torch.Tensor = memo[id(tensor)]
    return found


def train(step: Pass, context: PassContext, device: torch.device) -> None:
    """Carry a step out, and look where it left everything."""
    model, context.teacher = layered(8), layered(12)
    seen = set()
    model.module.head.register_forward_hook(lambda leaf, given, made: seen.add(made.device))
    report = step.apply(model, context)
    left = itertools.chain(model.module.state_dict().values(), model.sample_inputs.values())
    assert {value.device for value in left} == {CPU}, "what is made is exported from the processor"
    assert device in seen, "it was trained there"
    assert model.call(model.sample_inputs)["output"].device == CPU, "its graph makes its own tensors here again"
    assert f"trained on {compute.described(device)}" in report.notes, report.notes


def main() -> int:
    """Train with each of the steps."""
    _setup_privateuseone_for_python_backend("pretended")
    device = torch.device("pretended", 0)
    nn.Module.to = place  # type: ignore[assignment,method-assign]
    torch.Tensor.__deepcopy__ = nn.Parameter.__deepcopy__ = copied  # type: ignore[method-assign,assignment]
    batches._store = lambda module, layout: None
    for module in (distillation, fake_quantization):
        module.choose_device = lambda asked: device if asked == "cuda" else CPU  # type: ignore[attr-defined]
    generator = np.random.default_rng(0)
    data = Arrays({"x": generator.normal(size=(32, 3, 8, 8)).astype(np.float32)}, generator.integers(0, 4, 32))
    for step in STEPS:
        context = PassContext(data, data, None, "", "classification", 0, lambda part, text: None, compute="cuda")
        with Pretended():
            train(step, context, device)
    # Two devices do not mix here either, or all of this would say nothing.
    with Pretended():
        try:
            nn.functional.linear(torch.zeros(2, 4), torch.empty(3, 4, device=device))
        except RuntimeError:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
