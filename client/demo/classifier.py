"""The demo's model: a small convolutional classifier with a fully connected head, trained until it rises no longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH: Final = 128
# The learning rate falls by this factor with each epoch, so that a standstill comes, and means the end.
_LEARNING_RATE, _FALL = 3e-3, 0.6
# So many epochs without a rise end the training.
_PATIENCE: Final = 2
Told = Callable[[str, float | None, float | None], None]


class Classifier(nn.Module):
    """`image` is (N, 1, 28, 28) in bytes; the output is one logit for each of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 5, stride=2, padding=2), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(48 * 7 * 7, 384), nn.ReLU(), nn.Dropout(0.4), nn.Linear(384, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.features(image.float() / 255.0))
        return logits


@dataclass(frozen=True)
class Trained:
    """A trained model, its accuracy (0 to 1) on the validation samples after each epoch, and the seconds it took."""

    model: Classifier
    accuracies: tuple[float, ...]
    seconds: float


def train(
    images: NDArray[np.uint8],
    targets: NDArray[np.int64],
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]],
    *,
    seed: int,
    epochs: int,
    told: Told,
) -> Trained:
    """Train until the accuracy on the validation samples no longer rises, at most `epochs` times over all; keep the best weights.

    No clock ends it: what is learned must not depend on what else the machine does.
    """
    began = time.monotonic()
    torch.manual_seed(seed)
    # The layout that convolutions on processors are quickest in; the export has the ordinary one again.
    model = Classifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, weight_decay=1e-4, fused=True)
    x, y = torch.from_numpy(images), torch.from_numpy(targets)
    checked = torch.from_numpy(validation[0]), torch.from_numpy(validation[1])
    accuracies: list[float] = []
    best, kept, stale = -1.0, model.state_dict(), 0
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x))
        steps = len(order) // BATCH
        for step, rows in enumerate(order[: steps * BATCH].view(steps, BATCH)):
            loss = functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % 20 == 0:
                told("training the classifier", (epoch + (step + 1) / steps) / epochs, None)
        accuracies.append(accuracy(model, *checked))
        if accuracies[-1] > best:
            best, stale = accuracies[-1], 0
            kept = {name: value.clone() for name, value in model.state_dict().items()}
        else:
            stale += 1
        if stale >= _PATIENCE:
            break
        for group in optimizer.param_groups:
            group["lr"] *= _FALL
    model.load_state_dict(kept)
    model = model.to(memory_format=torch.contiguous_format)
    return Trained(model.eval(), tuple(accuracies), time.monotonic() - began)


def accuracy(model: Classifier, images: torch.Tensor, targets: torch.Tensor) -> float:
    """The share of samples whose largest logit is their class's."""
    model.eval()
    right = 0
    with torch.no_grad():
        for at in range(0, len(images), 1000):
            right += int((model(images[at : at + 1000]).argmax(1) == targets[at : at + 1000]).sum())
    return right / len(images)
