"""Every criterion can judge units that are blocks, halves, places of groups or hidden states."""

from __future__ import annotations

import pytest

from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays, Pass, PassContext
from fleetfit.compress.passes.taylor_pruning import TaylorPruning
from fleetfit.compress.passes.zero_pruning import ZeroPruning

from ..structure.models import MODELS, loaded

STEPS: list[Pass] = [
    ActivationPruning(ratio=0.5),
    TaylorPruning(ratio=0.5),
    ZeroPruning(pattern="channels", ratio=0.5),
]


@pytest.mark.parametrize("name", ["heads", "grouped", "shuffled", "halves", "gated", "recurrent"])
def test_prunes_by_every_criterion(name: str) -> None:
    whole, (_, samples) = loaded(name), MODELS[name]
    arrays = {
        tensor.name: value.repeat(4, *[1] * (value.dim() - 1))
        for tensor, value in zip(whole.inputs, samples, strict=True)
    }
    data = Arrays({input_name: value.numpy() for input_name, value in arrays.items()}, None)
    for step in STEPS:
        model = whole.clone()
        step.apply(model, PassContext(data, data, whole, "", "", 0, lambda fraction, activity: None))
        assert model.macs() < 0.7 * whole.macs(), step.pass_name()
        assert {n: v.shape for n, v in model.call(arrays).items()} == {
            n: v.shape for n, v in whole.call(arrays).items()
        }
