"""The training loop: an optimizer, a schedule, and what happens around each step. What the loss is, others say."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import as_images, as_stored
from fleetfit.compress.graph.kinds import BATCH_NORMS

AfterStep = Callable[[int, int], None]
"""Called after each change of the weights with the step's number, from 1, and the number of steps.

It may change the module's weights and buffers (pruned weights back to zero, observers frozen), and keeps no state elsewhere:
steps that were only taken to measure their time are undone in the module.
"""
Score = tuple[float, float]
# Steps taken to measure their time: the first is not counted, at most so many are, and fewer where they are long.
_MEASURED_STEPS, _MEASURED_SHARE = 8, 0.05


class Settings(Protocol):
    """What the loop must be told; `Distill` has it."""

    @property
    def learning_rate(self) -> float:
        """The highest."""

    @property
    def weight_decay(self) -> float:
        """AdamW's."""

    @property
    def warmup(self) -> float:
        """The share of steps in which the learning rate rises."""

    @property
    def clip(self) -> float | None:
        """The greatest norm of all gradients together."""

    @property
    def ema(self) -> float | None:
        """The decay of the averaged weights, which are then those judged and kept."""

    @property
    def patience(self) -> int | None:
        """Looks without an improvement before it stops."""


@dataclass
class Trained:
    """How a training went: the steps taken, the step whose weights were kept (0: none was better), the scores."""

    done: int
    at: int
    begun_with: Score
    best: Score


class Trainer:
    """Trains a module in place.

    Args:
        model: Its module is trained.
        settings: See `Settings`.
        parameters: What is trained, in groups that differ in nothing but their place.
        gradients: Called with the step's number, the module in training mode and no gradients; it leaves them there.
        judge: How good the module is now, greater is better.
        frozen_norms: Batch norms keep their statistics.
        after_step: See `AfterStep`; called in their order, before weights are averaged.
    """

    def __init__(
        self,
        model: LayeredModel,
        settings: Settings,
        parameters: Sequence[nn.Parameter],
        gradients: Callable[[int], None],
        judge: Callable[[], Score],
        *,
        frozen_norms: bool = False,
        after_step: Sequence[AfterStep] = (),
    ) -> None:
        self.model, self.settings, self.parameters = model, settings, list(parameters)
        self.gradients, self.judge = gradients, judge
        self.frozen_norms, self.after_step = frozen_norms, list(after_step)

    def run(self, steps: int, looks: int, report: Callable[[float], None]) -> Trained:
        """Take `steps` steps and leave the best of the weights judged in the module, among them those it began with."""
        module = self.model.module
        begun_with = best = self.judge()
        kept, at = copy.deepcopy(module.state_dict()), 0
        every = max(1, math.ceil(steps / looks))
        average = None if self.settings.ema is None else Average(module, self.settings.ema)
        optimizer = self._optimizer()
        stale = done = 0
        as_images(module)
        for done in range(1, steps + 1):
            self._step(optimizer, done, steps)
            if average is not None:
                average.update(done)
            if done % every and done != steps:
                continue
            report(done / steps)
            with average.in_place() if average is not None else _nothing():
                found = self.judge()
                if found > best:
                    best, at, stale = found, done, 0
                    kept = copy.deepcopy(module.state_dict())
                else:
                    stale += 1
            if self.settings.patience is not None and stale >= self.settings.patience:
                break
        optimizer.zero_grad()
        module.load_state_dict(kept)
        as_stored(module)
        module.eval()
        return Trained(done, at, begun_with, best)

    def seconds_per_step(self, budget: float) -> float:
        """The median time of the first steps, in seconds; the module is afterwards as it was.

        Random numbers that steps draw, and parameters outside the module, are the caller's to set back. Takes about a
        twentieth of `budget` seconds, or two steps.
        """
        module = self.model.module
        kept = copy.deepcopy(module.state_dict())
        optimizer = self._optimizer()
        as_images(module)
        began, times = time.perf_counter(), []
        for number in range(1, _MEASURED_STEPS + 2):
            start = time.perf_counter()
            self._step(optimizer, number, _MEASURED_STEPS + 1)
            if number > 1:
                _wait_for(self.model.device)
                times.append(time.perf_counter() - start)
                if time.perf_counter() - began > _MEASURED_SHARE * budget:
                    break
        optimizer.zero_grad()
        module.load_state_dict(kept)
        as_stored(module)
        return float(np.median(times))

    def _optimizer(self) -> torch.optim.Optimizer:
        fused = all(p.dtype in (torch.float32, torch.float64) for p in self.parameters)
        return torch.optim.AdamW(
            self.parameters, self.settings.learning_rate, weight_decay=self.settings.weight_decay, fused=fused
        )

    def _step(self, optimizer: torch.optim.Optimizer, number: int, steps: int) -> None:
        # Half a cosine down to zero, after a short linear rise.
        rise = max(1, int(self.settings.warmup * steps))
        factor = min(number / rise, 0.5 * (1 + math.cos(math.pi * (number - 1) / steps)))
        for group in optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        module = self.model.module.train()
        if self.frozen_norms:
            for leaf in module.modules():
                if isinstance(leaf, BATCH_NORMS):
                    leaf.eval()
        optimizer.zero_grad()
        self.gradients(number)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        optimizer.step()
        for hook in self.after_step:
            hook(number, steps)


class Average:
    """Exponential moving average of a module's floating-point weights and buffers.

    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging" (1992); the decay that grows with the step,
    min(decay, (1 + n) / (10 + n)), is TensorFlow's, so that few steps are not outweighed by the weights it began with.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.values = {
            key: value.detach().clone() for key, value in module.state_dict().items() if value.is_floating_point()
        }

    def update(self, number: int) -> None:
        """Take the weights after step `number` into the average."""
        decay = min(self.decay, (1 + number) / (10 + number))
        state = self.module.state_dict()
        with torch.no_grad():
            for key, value in self.values.items():
                value.lerp_(state[key], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        state = self.module.state_dict()
        kept = {key: state[key].detach().clone() for key in self.values}
        with torch.no_grad():
            for key, value in self.values.items():
                state[key].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in kept.items():
                    state[key].copy_(value)


def _wait_for(device: torch.device) -> None:
    """Until what was asked of a device is done: CUDA answers before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
