"""Which recurrent ATen calls become `nn.LSTM` and `nn.GRU`."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fleetfit.compress.intake.layers import Call, Layer

aten = torch.ops.aten
_ZEROS = (aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default)


def recurrent_layer(call: Call) -> Layer | None:
    """The layer for `lstm` or `gru`; None where it projects its states, packs its input or starts from something unusual."""
    arguments = call.arguments
    x = call.data("input")
    if x is None or x.meta["val"].dim() != 3 or not all(user.op == "call_function" for user in call.node.users):
        return None
    # Indices only: the results are picked apart again.
    if any("getitem" not in str(user.target) for user in call.node.users):
        return None
    layers, both, biased = arguments["num_layers"], arguments["bidirectional"], arguments["has_biases"]
    names = [
        f"{kind}_l{layer}{end}"
        for layer in range(layers)
        for end in (("", "_reverse") if both else ("",))
        for kind in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biased else ()))
    ]
    weights = [call.weights.get(value) for value in arguments["params"]]
    if len(weights) != len(names) or any(weight is None for weight in weights):
        return None
    tensors = {name: weight for name, weight in zip(names, weights, strict=True) if weight is not None}
    first = tensors["weight_hh_l0"].tensor
    lstm = call.node.target is aten.lstm.input
    start = _start(arguments["hx"], lstm)
    if start is None:
        return None
    module = (nn.LSTM if lstm else nn.GRU)(
        tensors["weight_ih_l0"].tensor.shape[1],
        first.shape[1],
        num_layers=layers,
        bias=biased,
        batch_first=arguments["batch_first"],
        dropout=arguments["dropout"] if layers > 1 else 0.0,
        bidirectional=both,
        device="meta",
    )
    return Layer(module, (x,), tensors)


def _start(given: Any, lstm: bool) -> tuple[()] | None:
    """Zeros are what the layer starts from by itself; anything else is not taken."""
    states = list(given) if lstm else [given]
    zeros = all(isinstance(state, fx.Node) and _is_zero(state) for state in states)
    return () if zeros else None


def _is_zero(node: fx.Node) -> bool:
    if node.target in (aten.full.default, aten.full_like.default):
        return bool(node.args[1] == 0)
    return node.target in _ZEROS
