"""Every criterion finds neurons that give nothing, and without them nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.registry import passes
from fleetfit.compress.structure.groups import analyse

from ..structure.models import loaded

LAYERS = {"classifier": "hidden", "residual": "inner", "joined": "mix"}
"""One layer of each model, behind which a ReLU stands."""
CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    "mean activation": ("activation_pruning", {}),
    "zeros": ("activation_pruning", {"criterion": "zeros"}),
    "taylor": ("taylor_pruning", {}),
    "taylor, global": ("taylor_pruning", {"scope": "global"}),
    "redundancy": ("redundancy_pruning", {}),
    "magnitude": ("zero_pruning", {}),
}


@pytest.fixture(scope="module")
def models() -> dict[str, LayeredModel]:
    return {name: loaded(name) for name in LAYERS}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31 - 1), silenced=st.booleans(), count=st.integers(1, 3))
def test_dead_neurons_go_first_and_are_not_missed(
    models: dict[str, LayeredModel], name: str, criterion: str, seed: int, silenced: bool, count: int
) -> None:
    """They have no incoming weights, or a bias so low that the ReLU never lets them through."""
    model, random = models[name].clone(), np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    layer = model.module.get_submodule(LAYERS[name])
    size = layer.weight.shape[0]  # type: ignore[index,union-attr]
    dead = torch.from_numpy(random.permutation(size)[:count])
    low = silenced and criterion != "magnitude"
    with torch.no_grad():
        # What lives is let through, so that nothing else is dead by chance.
        layer.bias.fill_(5.0)  # type: ignore[operator,union-attr]
        layer.bias[dead] = -1e4 if low else 0.0  # type: ignore[operator,index]
        if not low:
            layer.weight[dead] = 0.0  # type: ignore[operator,index]
    shapes = {key: value.shape[1:] for key, value in model.sample_inputs.items()}
    inputs = {key: random.normal(size=(40, *shape)).astype(np.float32) for key, shape in shapes.items()}
    alive = sorted(set(range(size)) - set(dead.tolist()))
    kept = layer.weight.detach()[alive]  # type: ignore[index,operator,union-attr]
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    with torch.no_grad():
        before = model.call(tensors)
    which, parameters = CRITERIA[criterion]
    others = [one for group in analyse(model).groups for one in group.layers if one != LAYERS[name]]
    step = passes()[which].model_validate({"ratio": count / size + 1e-9, "skip": others, **parameters})
    context = PassContext(Arrays(inputs, None), None, model.clone(), "", "", 0, lambda part, activity: None)
    step.apply(model, context)
    left = model.module.get_submodule(LAYERS[name]).weight.detach()  # type: ignore[operator,union-attr]
    assert left.shape[0] == size - count and torch.equal(left, kept)
    with torch.no_grad():
        after = model.call(tensors)
    for key, value in after.items():
        # Folding solves least squares, to single precision.
        close = 1e-4 if criterion == "redundancy" else 1e-6
        torch.testing.assert_close(value, before[key], rtol=0, atol=close * max(1.0, float(before[key].abs().max())))
