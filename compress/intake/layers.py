"""Which ATen calls become which layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fleetfit.compress.intake.weights import Weight

aten = torch.ops.aten


@dataclass
class Layer:
    """A layer that stands for one call: `module` is made with its weights on no device, `tensors` are put in afterwards."""

    module: nn.Module
    data: tuple[fx.Node, ...]
    """The call's inputs that are not weights."""
    tensors: dict[str, Weight] = field(default_factory=dict)
    transposed: bool = False
    """The stored weight is the transpose of the layer's."""


@dataclass
class Call:
    """One ATen call: its arguments by the operator's own names, with defaults, and the weights among them."""

    node: fx.Node
    arguments: dict[str, Any]
    weights: dict[fx.Node, Weight]

    def weight(self, name: str) -> Weight | None:
        """The weight given as argument `name`; None if that is None or something computed."""
        value = self.arguments.get(name)
        return self.weights.get(value) if isinstance(value, fx.Node) else None

    def given(self, name: str) -> bool:
        """Whether argument `name` is there and not None."""
        return self.arguments.get(name) is not None

    def data(self, name: str) -> fx.Node | None:
        """The computed tensor given as argument `name`."""
        value = self.arguments.get(name)
        return value if isinstance(value, fx.Node) and value not in self.weights else None


Builder = Callable[[Call], Layer | None]
BUILDERS: dict[Any, Builder] = {}


def bind(node: fx.Node, weights: dict[fx.Node, Weight]) -> Call:
    """The call of `node`, with its arguments bound to the operator's schema."""
    schema = node.target._schema  # type: ignore[union-attr]
    arguments: dict[str, Any] = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(node.args):
            arguments[argument.name] = node.args[index]
        else:
            arguments[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return Call(node, arguments, weights)


def _builds(*targets: Any) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        for target in targets:
            BUILDERS[target] = builder
        return builder

    return register


def _pair(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * count if len(values) == 1 else values


def _rank(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else None


def _constants(call: Call, *names: str) -> bool:
    """Whether these arguments hold no symbolic size."""
    return not any(isinstance(part, fx.Node) for name in names for part in _pair(call.arguments.get(name), 1))


_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _convolution(call: Call, transposed: bool) -> Layer | None:
    x, weight, bias = call.data("input"), call.weight("weight"), call.weight("bias")
    if x is None or weight is None or (call.given("bias") and bias is None):
        return None
    spatial = weight.tensor.dim() - 2
    # An input without a batch is taken too by PyTorch; that case stays as it is.
    if _rank(x) != spatial + 2 or not _constants(call, "stride", "padding", "dilation"):
        return None
    groups = call.arguments["groups"]
    padding = call.arguments["padding"]
    options: dict[str, Any] = {
        "kernel_size": tuple(weight.tensor.shape[2:]),
        "stride": _pair(call.arguments["stride"], spatial),
        "padding": padding if isinstance(padding, str) else _pair(padding, spatial),
        "dilation": _pair(call.arguments["dilation"], spatial),
        "groups": groups,
        "bias": bias is not None,
        "device": "meta",
    }
    first, second = weight.tensor.shape[0], weight.tensor.shape[1] * groups
    if transposed:
        options["output_padding"] = _pair(call.arguments["output_padding"], spatial)
        module = _TRANSPOSED[spatial](first, second, **options)
    else:
        module = _CONVOLUTIONS[spatial](second, first, **options)
    return Layer(module, (x,), {"weight": weight, **({"bias": bias} if bias else {})})


@_builds(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
def _conv(call: Call) -> Layer | None:
    return _convolution(call, transposed=False)


@_builds(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _conv_transpose(call: Call) -> Layer | None:
    return _convolution(call, transposed=True)


@_builds(aten.convolution.default)
def _general_convolution(call: Call) -> Layer | None:
    return _convolution(call, transposed=bool(call.arguments["transposed"]))


def _linear_layer(x: fx.Node, weight: Weight, bias: Weight | None, transposed: bool = False) -> Layer:
    rows, columns = weight.tensor.shape
    inputs, outputs = (rows, columns) if transposed else (columns, rows)
    module = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    return Layer(module, (x,), {"weight": weight, **({"bias": bias} if bias else {})}, transposed)


@_builds(aten.linear.default)
def _linear(call: Call) -> Layer | None:
    x, weight, bias = call.data("input"), call.weight("weight"), call.weight("bias")
    if x is None or weight is None or weight.tensor.dim() != 2 or (call.given("bias") and bias is None):
        return None
    return _linear_layer(x, weight, bias)


def _matrix(call: Call, name: str) -> tuple[Weight, bool] | None:
    """The weight given as a matrix, and whether it is stored the other way round than `nn.Linear` does."""
    value = call.arguments.get(name)
    if not isinstance(value, fx.Node):
        return None
    if value in call.weights:
        weight, transposed = call.weights[value], True
    elif value.target in (aten.t.default, aten.numpy_T.default) and value.args[0] in call.weights:
        weight, transposed = call.weights[value.args[0]], False  # type: ignore[index]
    elif (
        value.target is aten.transpose.int
        and value.args[0] in call.weights
        and set(value.args[1:]) in ({0, 1}, {-1, -2})
    ):
        weight, transposed = call.weights[value.args[0]], False  # type: ignore[index]
    elif value.target is aten.permute.default and value.args[0] in call.weights and value.args[1] == [1, 0]:
        weight, transposed = call.weights[value.args[0]], False  # type: ignore[index]
    else:
        return None
    if weight.tensor.dim() != 2 or not weight.is_parameter:
        return None
    # A transposed copy would no longer be tied to other readers of the weight.
    if transposed and len(value.users) > 1:
        return None
    return weight, transposed


@_builds(aten.addmm.default)
def _addmm(call: Call) -> Layer | None:
    x, bias, matrix = call.data("mat1"), call.weight("self"), _matrix(call, "mat2")
    plain = call.arguments["beta"] == 1 and call.arguments["alpha"] == 1
    if x is None or bias is None or matrix is None or not plain:
        return None
    if tuple(bias.tensor.shape) != (matrix[0].tensor.shape[1 if matrix[1] else 0],):
        return None
    return _linear_layer(x, matrix[0], bias, matrix[1])


@_builds(aten.mm.default)
def _mm(call: Call) -> Layer | None:
    x, matrix = call.data("self"), _matrix(call, "mat2")
    return None if x is None or matrix is None else _linear_layer(x, matrix[0], None, matrix[1])


@_builds(aten.matmul.default)
def _matmul(call: Call) -> Layer | None:
    x, matrix = call.data("self"), _matrix(call, "other")
    return None if x is None or matrix is None else _linear_layer(x, matrix[0], None, matrix[1])


_BATCH_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _affine(call: Call) -> dict[str, Weight] | None:
    """Weight and bias of a normalization, both or neither; None if they are anything else."""
    weight, bias = call.weight("weight"), call.weight("bias")
    if call.given("weight") != (weight is not None) or call.given("bias") != (bias is not None):
        return None
    return {name: w for name, w in (("weight", weight), ("bias", bias)) if w is not None}


@_builds(aten.batch_norm.default)
def _batch_norm(call: Call) -> Layer | None:
    x, mean, variance, affine = (
        call.data("input"),
        call.weight("running_mean"),
        call.weight("running_var"),
        _affine(call),
    )
    kind = _BATCH_NORMS.get(_rank(x) or 0) if x is not None else None
    if x is None or mean is None or variance is None or affine is None or kind is None or len(affine) == 1:
        return None
    if call.arguments["training"]:
        return None
    module = kind(
        mean.tensor.shape[0],
        eps=call.arguments["eps"],
        momentum=call.arguments["momentum"],
        affine=bool(affine),
        device="meta",
    )
    module.register_buffer("num_batches_tracked", None)
    return Layer(module, (x,), {**affine, "running_mean": mean, "running_var": variance})


@_builds(aten.layer_norm.default)
def _layer_norm(call: Call) -> Layer | None:
    x, affine = call.data("input"), _affine(call)
    if x is None or affine is None or not _constants(call, "normalized_shape") or list(affine) == ["bias"]:
        return None
    module = nn.LayerNorm(
        list(call.arguments["normalized_shape"]),
        eps=call.arguments["eps"],
        elementwise_affine=bool(affine),
        bias="bias" in affine,
        device="meta",
    )
    return Layer(module, (x,), affine)


@_builds(aten.group_norm.default)
def _group_norm(call: Call) -> Layer | None:
    x, affine = call.data("input"), _affine(call)
    if x is None or affine is None or len(affine) == 1:
        return None
    channels = x.meta["val"].shape[1]
    if not isinstance(channels, int):
        return None
    module = nn.GroupNorm(
        call.arguments["num_groups"], channels, eps=call.arguments["eps"], affine=bool(affine), device="meta"
    )
    return Layer(module, (x,), affine)


_INSTANCE_NORMS: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


@_builds(aten.instance_norm.default)
def _instance_norm(call: Call) -> Layer | None:
    x, affine = call.data("input"), _affine(call)
    kind = _INSTANCE_NORMS.get(_rank(x) or 0) if x is not None else None
    tracked = call.given("running_mean") or call.given("running_var")
    if x is None or affine is None or kind is None or len(affine) == 1 or tracked:
        return None
    channels = x.meta["val"].shape[1]
    if not call.arguments["use_input_stats"] or not isinstance(channels, int):
        return None
    return Layer(kind(channels, eps=call.arguments["eps"], affine=bool(affine), device="meta"), (x,), affine)


@_builds(aten.embedding.default)
def _embedding(call: Call) -> Layer | None:
    indices, weight = call.data("indices"), call.weight("weight")
    if indices is None or weight is None or call.arguments["sparse"] or call.arguments["scale_grad_by_freq"]:
        return None
    padding = call.arguments["padding_idx"]
    rows, columns = weight.tensor.shape
    module = nn.Embedding(rows, columns, padding_idx=padding if padding >= 0 else None, device="meta")
    return Layer(module, (indices,), {"weight": weight})


@_builds(aten.prelu.default)
def _prelu(call: Call) -> Layer | None:
    x, weight = call.data("self"), call.weight("weight")
    if x is None or weight is None or weight.tensor.dim() != 1:
        return None
    return Layer(nn.PReLU(weight.tensor.shape[0], device="meta"), (x,), {"weight": weight})


def _element_wise(make: Callable[[dict[str, Any]], nn.Module]) -> Builder:
    def build(call: Call) -> Layer | None:
        x = call.data("self")
        others = (value for name, value in call.arguments.items() if name != "self")
        if x is None or any(isinstance(value, fx.Node) for value in others):
            return None
        return Layer(make(call.arguments), (x,))

    return build


def _clamp(arguments: dict[str, Any]) -> nn.Module:
    if (arguments["min_val"], arguments["max_val"]) == (0, 6):
        return nn.ReLU6()
    return nn.Hardtanh(arguments["min_val"], arguments["max_val"])


_ACTIVATIONS: dict[Any, Callable[[dict[str, Any]], nn.Module]] = {
    aten.relu.default: lambda a: nn.ReLU(),
    aten.relu6.default: lambda a: nn.ReLU6(),
    aten.hardtanh.default: _clamp,
    aten.leaky_relu.default: lambda a: nn.LeakyReLU(a["negative_slope"]),
    aten.gelu.default: lambda a: nn.GELU(a["approximate"]),
    aten.silu.default: lambda a: nn.SiLU(),
    aten.mish.default: lambda a: nn.Mish(),
    aten.selu.default: lambda a: nn.SELU(),
    aten.celu.default: lambda a: nn.CELU(a["alpha"]),
    aten.hardswish.default: lambda a: nn.Hardswish(),
    aten.hardsigmoid.default: lambda a: nn.Hardsigmoid(),
    aten.sigmoid.default: lambda a: nn.Sigmoid(),
    aten.tanh.default: lambda a: nn.Tanh(),
    aten.softplus.default: lambda a: nn.Softplus(a["beta"], a["threshold"]),
    aten.log_sigmoid.default: lambda a: nn.LogSigmoid(),
}
for _target, _make in _ACTIVATIONS.items():
    BUILDERS[_target] = _element_wise(_make)


@_builds(aten.elu.default)
def _elu(call: Call) -> Layer | None:
    x = call.data("self")
    if x is None or call.arguments["scale"] != 1 or call.arguments["input_scale"] != 1:
        return None
    return Layer(nn.ELU(call.arguments["alpha"]), (x,))


@_builds(aten.softmax.int, aten.log_softmax.int)
def _softmax(call: Call) -> Layer | None:
    x = call.data("self")
    if x is None or call.given("dtype"):
        return None
    kind = nn.Softmax if call.node.target is aten.softmax.int else nn.LogSoftmax
    return Layer(kind(dim=call.arguments["dim"]), (x,))


_POOLS: dict[Any, tuple[type[nn.Module], int]] = {
    aten.max_pool1d.default: (nn.MaxPool1d, 1),
    aten.max_pool2d.default: (nn.MaxPool2d, 2),
    aten.max_pool3d.default: (nn.MaxPool3d, 3),
    aten.avg_pool1d.default: (nn.AvgPool1d, 1),
    aten.avg_pool2d.default: (nn.AvgPool2d, 2),
    aten.avg_pool3d.default: (nn.AvgPool3d, 3),
}


@_builds(*_POOLS)
def _pool(call: Call) -> Layer | None:
    kind, spatial = _POOLS[call.node.target]
    x = call.data("self")
    if x is None or _rank(x) != spatial + 2 or not _constants(call, "kernel_size", "stride", "padding", "dilation"):
        return None
    arguments = call.arguments
    options: dict[str, Any] = {
        "kernel_size": _pair(arguments["kernel_size"], spatial),
        "stride": _pair(arguments["stride"], spatial) if arguments["stride"] else None,
        "padding": _pair(arguments["padding"], spatial),
        "ceil_mode": arguments["ceil_mode"],
    }
    if "dilation" in arguments:
        options["dilation"] = _pair(arguments["dilation"], spatial)
    else:
        options["count_include_pad"] = arguments["count_include_pad"]
        if spatial > 1:
            options["divisor_override"] = arguments["divisor_override"]
    return Layer(kind(**options), (x,))


_ADAPTIVE: dict[Any, tuple[type[nn.Module], int]] = {
    aten.adaptive_avg_pool1d.default: (nn.AdaptiveAvgPool1d, 1),
    aten.adaptive_avg_pool2d.default: (nn.AdaptiveAvgPool2d, 2),
    aten.adaptive_avg_pool3d.default: (nn.AdaptiveAvgPool3d, 3),
}


@_builds(*_ADAPTIVE)
def _adaptive_pool(call: Call) -> Layer | None:
    kind, spatial = _ADAPTIVE[call.node.target]
    x = call.data("self")
    if x is None or _rank(x) != spatial + 2 or not _constants(call, "output_size"):
        return None
    return Layer(kind(_pair(call.arguments["output_size"], spatial)), (x,))
