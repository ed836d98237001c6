"""The original of the benchmark against the peers, its data, and the fine-tuning that every peer gets.

A residual network of widths 32, 64 and 128 with two blocks each on Fashion-MNIST. Its first convolution halves the picture, so
that the whole benchmark can be run on two cores. What is finished is kept in a cache folder (`FLEETFIT_BENCHMARK_CACHE`, else the
user's), in a file whose name holds the settings, and is not made again.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from benchmarks.harness import cache_folder, machine
from benchmarks.training import pictures
from fleetfit.client.demo.images import load_images

WIDTHS, BLOCKS, CLASSES = (32, 64, 128), 2, 10
HELD_OUT, BATCH, TEMPERATURE = 9_000, 128, 4.0
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """How much is trained and with how many seeds."""

    train: int = 51_000
    epochs: int = 8
    learning_rate: float = 0.15
    tuning_epochs: int = 2
    seeds: int = 5
    rounds: int = 60
    version: int = 1

    def folder(self) -> Path:
        """Where what was made with what is trained lies."""
        made = {name: value for name, value in asdict(self).items() if name not in ("seeds", "rounds")}
        return cache_folder("peers", made)


FULL = Settings()
QUICK = Settings(train=2_048, epochs=2, tuning_epochs=1, seeds=1, rounds=6)


@dataclass(frozen=True)
class Split:
    """Pictures (N, 1, 28, 28) in 0 to 1 and their classes."""

    images: Floats
    targets: NDArray[np.int64]

    def head(self, count: int) -> Split:
        """The first of them."""
        return Split(self.images[:count], self.targets[:count])


@dataclass(frozen=True)
class Splits:
    """What is trained on, what is chosen by, and what is read once."""

    train: Split
    validation: Split
    test: Split


def splits(settings: Settings) -> Splits:
    """Fashion-MNIST; the pictures held out are the same in every run."""
    found = load_images(lambda text: print(text, file=sys.stderr))
    order = np.random.default_rng(0).permutation(len(found.images))
    known = Split(pictures(found.images), found.targets.astype(np.int64))
    rows, held_out = order[:-HELD_OUT][: settings.train], order[-HELD_OUT:]
    if settings == QUICK:
        held_out = held_out[: settings.train]
    return Splits(
        Split(known.images[rows], known.targets[rows]),
        Split(known.images[held_out], known.targets[held_out]),
        Split(pictures(found.test_images), found.test_targets.astype(np.int64)),
    )


class Block(nn.Module):
    """Two convolutions around a shortcut, which is a convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.second_norm(self.second(functional.relu(self.first_norm(self.first(x)))))
        return functional.relu(inside + self.shortcut(x))


class Residual(nn.Module):
    """The network: (N, 1, 28, 28) to (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTHS[0], 5, 2, 2, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        blocks, before = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for number in range(BLOCKS):
                blocks.append(Block(before, width, 2 if stage and not number else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def original(settings: Settings, data: Splits) -> nn.Module:
    """The trained network in evaluation mode; from the cache where it is there, and from its last epoch where that is."""
    path = settings.folder() / "original.pt"
    torch.manual_seed(0)
    model = Residual().to(memory_format=torch.channels_last)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    train(model, data.train, settings.epochs, settings.learning_rate, seed=0, resume=path.with_suffix(".part"))
    torch.save(model.state_dict(), path)
    path.with_suffix(".part").unlink(missing_ok=True)
    return model.eval()


def train(
    model: nn.Module,
    data: Split,
    epochs: int,
    learning_rate: float,
    *,
    seed: int,
    answers: torch.Tensor | None = None,
    resume: Path | None = None,
) -> None:
    """SGD on one cycle of `learning_rate`, half of the pictures flipped; the same for the original and every peer.

    `answers` (2, N, classes): what the original says to each picture and to its mirror image. With them the loss is that of
    Hinton et al. (2015): the divergence of softened outputs, and half of the cross entropy.
    """
    x, y = torch.from_numpy(data.images), torch.from_numpy(data.targets)
    steps = len(x) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps, pct_start=0.2)
    begin = 0
    if resume is not None and resume.exists():
        state = torch.load(resume, weights_only=True)
        begin = state["epoch"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    model.train()
    for epoch in range(begin, epochs):
        began, numbers = time.monotonic(), np.random.default_rng([seed, epoch])
        order = torch.from_numpy(numbers.permutation(len(x))[: steps * BATCH])
        for rows in order.split(BATCH):
            flipped = torch.from_numpy(numbers.random(BATCH) < 0.5)
            batch = torch.where(flipped[:, None, None, None], x[rows].flip(-1), x[rows])
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits, y[rows])
            if answers is not None:
                soft = functional.log_softmax(answers[flipped.long(), rows] / TEMPERATURE, 1)
                ours = functional.log_softmax(logits / TEMPERATURE, 1)
                divergence = functional.kl_div(ours, soft, log_target=True, reduction="batchmean")
                loss = 0.5 * loss + TEMPERATURE**2 * divergence
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        say(f"  epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.3f}, {time.monotonic() - began:.0f} s")
        if resume is not None:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            torch.save({"epoch": epoch + 1, **state}, resume)
    model.eval()


def outputs(model: nn.Module, images: Floats) -> torch.Tensor:
    """Logits (N, classes), with PyTorch."""
    model.eval()
    with torch.no_grad():
        parts = torch.from_numpy(images).split(500)
        return torch.cat([model(part.contiguous(memory_format=torch.channels_last)) for part in parts])


def teaching(settings: Settings, model: nn.Module, data: Splits) -> torch.Tensor:
    """What the original says to the training pictures and to their mirror images (2, N, classes); kept in the cache."""
    path = settings.folder() / "answers.pt"
    if not path.exists():
        mirrored = np.ascontiguousarray(data.train.images[..., ::-1])
        torch.save(torch.stack([outputs(model, data.train.images), outputs(model, mirrored)]), path)
    found: torch.Tensor = torch.load(path, weights_only=True)
    return found


def without_vnni() -> bool:
    """Whether sums of products of 8-bit numbers saturate on this processor, so that weights should have 7 bits."""
    return not {"avx512_vnni", "avx_vnni"} & set(machine()["instruction_sets"])


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
