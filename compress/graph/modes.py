"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetfit.compress.graph.layered import LayeredModel


@contextmanager
def evaluating(*models: LayeredModel) -> Iterator[None]:
    """Inside, the models are in evaluation mode; afterwards in that which they were in."""
    training = [model.module.training for model in models]
    for model in models:
        model.module.eval()
    try:
        yield
    finally:
        for model, before in zip(models, training, strict=True):
            model.module.train(before)
