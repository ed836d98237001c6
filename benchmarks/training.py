"""The originals of benchmarks: small classifiers, trained here, as fleetfit takes them in; and their accuracy."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fleetfit.client.demo.images import load_images
from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import outputs_over
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, PassContext


def convolutional() -> nn.Module:
    """Four convolutions of 3x3 with batch norm and ReLU, and two linear layers, for pictures of shape (batch, 1, 28, 28)."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)


def pictures(images: NDArray[Any]) -> NDArray[np.float32]:
    """Fashion-MNIST's bytes as floats from 0 to 1, shape (count, 1, 28, 28)."""
    return images.reshape(-1, 1, 28, 28).astype(np.float32) / 255


def train(
    model: nn.Module, images: NDArray[Any], targets: NDArray[Any], *, epochs: int, batch: int, learning_rate: float
) -> None:
    """Train a classifier in place with AdamW on one cycle of `learning_rate`.

    `torch.manual_seed` before the model is made decides everything random.
    """
    x, y = torch.from_numpy(images), torch.from_numpy(targets)
    steps = len(x) // batch
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: steps * batch].split(batch):
            loss = functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def layered(model: nn.Module, images: NDArray[Any]) -> LayeredModel:
    """A trained classifier as fleetfit takes it in: exported and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        stored = model.to(memory_format=torch.contiguous_format).eval()
        return load_pt2(export(stored, (torch.from_numpy(images[:2]),), Path(folder) / "model.pt2"))


def trained(
    model: nn.Module, images: NDArray[Any], targets: NDArray[Any], *, epochs: int, batch: int, learning_rate: float
) -> LayeredModel:
    """Both, one after the other."""
    train(model, images, targets, epochs=epochs, batch=batch, learning_rate=learning_rate)
    return layered(model, images)


def accuracy(model: LayeredModel, images: NDArray[Any], targets: NDArray[Any]) -> float:
    """Top-1 accuracy in points, with PyTorch."""
    (logits,) = outputs_over(model, Arrays({model.inputs[0].name: images}, None)).values()
    return 100 * float((logits.argmax(1).numpy() == targets).mean())


def start_on_fashion(
    seed: int, *, count: int, held_out: int, epochs: int, batch: int
) -> tuple[LayeredModel, PassContext, Callable[[LayeredModel], float]]:
    """A `convolutional` trained on `count` pictures of Fashion-MNIST, what passes get of them, and accuracy on the test split."""
    images = load_images(lambda text: print(text, file=sys.stderr))
    order = np.random.default_rng(seed).permutation(len(images.images))
    rows, others = order[:count], order[-held_out:]
    known, test = pictures(images.images), pictures(images.test_images)
    torch.manual_seed(seed)
    original = trained(
        convolutional(), known[rows], images.targets[rows], epochs=epochs, batch=batch, learning_rate=4e-3
    )
    name = original.inputs[0].name
    context = PassContext(
        Arrays({name: known[rows]}, images.targets[rows]),
        Arrays({name: known[others]}, images.targets[others]),
        original.clone(),
        "accuracy",
        "classification",
        seed,
        lambda part, activity: None,
    )
    return original, context, lambda model: accuracy(model, test, images.test_targets)
