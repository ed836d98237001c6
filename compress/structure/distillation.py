"""Training a student on its teacher's outputs."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays, PassContext, PassReport
from fleetfit.compress.structure.batches import as_images, as_stored, batch_size, outputs_over, spread_rows, take
from fleetfit.compress.structure.losses import DistillationLoss
from fleetfit.compress.structure.teacher import Teacher
from fleetfit.compress.structure.zeros import KeptZeros
from fleetfit.core.errors import InvalidData, InvalidRecipe
from fleetfit.core.metrics import metric_info
from fleetfit.core.statistics import metric_value, score_samples

if TYPE_CHECKING:
    from fleetfit.compress.passes.distill import Distill

# Looks at the validation split: at least and at most so many, and about this share of the time.
_FEWEST_LOOKS, _MOST_LOOKS, _LOOKING = 3, 10, 0.2
# So many samples tell what kind of outputs the original has, and how much they vary.
_KINDS_FROM = 4096
# Below this a batch's own statistics say little about the data's: batch norms then keep those they have.
_SMALLEST_NORM_BATCH = 16
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def distill(model: LayeredModel, settings: Distill, context: PassContext) -> PassReport:
    """Train `model` in place on the outputs of `context.teacher`; the work of `Distill`.

    The weights that are best on the validation split are kept, among them those it began with.
    """
    data = context.training_data("distill")
    if settings.samples is not None:
        data = spread_rows(data, settings.samples, context.seed)
    trainable = [p for p in model.module.parameters() if p.requires_grad and p.is_floating_point()]
    if not trainable:
        raise InvalidRecipe("distill finds no weight to train in this model; leave the step out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return _Training(model, settings, context, data, trainable).run()


class _Training:
    def __init__(
        self,
        model: LayeredModel,
        settings: Distill,
        context: PassContext,
        data: Arrays,
        trainable: list[nn.Parameter],
    ) -> None:
        self.model, self.settings, self.context, self.data = model, settings, context, data
        context.report(0.0, "asking the original")
        if context.teacher is None:
            raise InvalidRecipe("distill needs the original as a trainable model; push it as a .pt2 archive")
        self.teacher = Teacher(context.teacher, data)
        self.targets = None if data.targets is None else torch.from_numpy(np.ascontiguousarray(data.targets))
        self.loss = DistillationLoss.for_outputs(
            self.teacher.some(_KINDS_FROM),
            None if self.targets is None else self.targets[:_KINDS_FROM],
            task=context.task,
            temperature=settings.temperature,
            label_weight=settings.label_weight,
        )
        self.teacher_validation = (
            None if context.validation is None else outputs_over(context.teacher, context.validation)
        )
        # One step sees `batch` samples; a model that takes only smaller ones sees them one after the other.
        self.chunk = batch_size(model, min(settings.batch, len(data)))
        self.batch = max(self.chunk, min(settings.batch, len(data)) // self.chunk * self.chunk)
        self.per_epoch = len(data) // self.batch
        if self.per_epoch == 0:
            raise InvalidData(f"distill needs at least {self.batch} training samples and there are {len(data)}")
        self.steps = max(1, round(settings.epochs * self.per_epoch))
        self.optimizer = torch.optim.AdamW(
            trainable, settings.learning_rate, weight_decay=settings.weight_decay, fused=_can_fuse(trainable)
        )
        self.random = np.random.default_rng(context.seed)
        self.zeros = KeptZeros(model)

    def run(self) -> PassReport:
        """Train, and leave the best weights in the model."""
        module = self.model.module
        best = self._judge()
        begun_with = best
        kept, at = copy.deepcopy(module.state_dict()), 0
        every = max(1, math.ceil(self.steps / self._looks()))
        stale = done = 0
        as_images(module)
        for done in range(1, self.steps + 1):
            self._step(done)
            if done % every and done != self.steps:
                continue
            self.context.report(done / self.steps, "training on the original's outputs")
            found = self._judge()
            if found > best:
                best, at, stale = found, done, 0
                kept = copy.deepcopy(module.state_dict())
            else:
                stale += 1
                if self.settings.patience is not None and stale >= self.settings.patience:
                    break
        module.load_state_dict(kept)
        as_stored(module)
        module.eval()
        return PassReport(notes=self._notes(done, at, begun_with, best), training_steps=done)

    def _looks(self) -> int:
        # A training step costs about three times as much per sample as a look.
        count = 1 if self.context.validation is None else len(self.context.validation)
        return min(_MOST_LOOKS, max(_FEWEST_LOOKS, round(_LOOKING * 3 * self.steps * self.batch / count)))

    def _step(self, number: int) -> None:
        # Half a cosine down to zero, after a short linear rise.
        rise = max(1, self.steps // 20)
        factor = min(number / rise, 0.5 * (1 + math.cos(math.pi * (number - 1) / self.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        module = self.model.module.train()
        if self.chunk < _SMALLEST_NORM_BATCH:
            for leaf in module.modules():
                if isinstance(leaf, _NORMS):
                    leaf.eval()
        rows = self._rows(number)
        self.optimizer.zero_grad()
        pieces = len(rows) // self.chunk
        for piece in range(pieces):
            chosen = rows[piece * self.chunk : (piece + 1) * self.chunk]
            student = self.model.call(take(self.model, self.data, chosen))
            index = torch.from_numpy(chosen)
            loss = self.loss(student, self.teacher.of(chosen), None if self.targets is None else self.targets[index])
            if not bool(torch.isfinite(loss)):
                raise InvalidRecipe(
                    f"distill diverged at step {number}; give it a smaller learning_rate than {self.settings.learning_rate}"
                )
            (loss / pieces).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.zeros.restore()

    def _rows(self, number: int) -> NDArray[np.int64]:
        """The samples of a step: every epoch has its own order."""
        position = (number - 1) % self.per_epoch
        if position == 0:
            self.order = self.random.permutation(len(self.data))
        return np.asarray(self.order[position * self.batch : (position + 1) * self.batch], dtype=np.int64)

    def _judge(self) -> tuple[float, float]:
        """How good the model is on the validation split, greater is better: the metric, then the negative loss."""
        validation = self.context.validation
        if validation is None or self.teacher_validation is None:
            # Nothing to judge by: later is better.
            self.judged = getattr(self, "judged", -1) + 1
            return float(self.judged), 0.0
        outputs = outputs_over(self.model, validation)
        targets = None if validation.targets is None else torch.from_numpy(np.ascontiguousarray(validation.targets))
        with torch.no_grad():
            loss = float(self.loss(outputs, self.teacher_validation, targets))
        if not math.isfinite(loss):
            return -math.inf, -math.inf
        if not self.context.metric or validation.targets is None:
            return -loss, 0.0
        scores = score_samples(
            self.context.metric, {name: value.numpy() for name, value in outputs.items()}, validation.targets
        )
        value = metric_value(self.context.metric, scores).value
        return (value if metric_info(self.context.metric).higher_is_better else -value), -loss

    def _notes(self, done: int, at: int, begun_with: tuple[float, float], best: tuple[float, float]) -> list[str]:
        kinds = ", ".join(f"{name} as {kind.value}" for name, kind in self.loss.kinds.items())
        notes = [f"{done} steps of {self.batch} samples; the original's outputs: {kinds}"]
        if self.context.validation is None:
            return notes
        if at == 0:
            return [*notes, "training did not improve it on the validation split; the weights it began with were kept"]
        notes.append(f"the weights after step {at} are the best on the validation split")
        if self.context.metric and self.context.validation.targets is not None:
            before, after = abs(begun_with[0]), abs(best[0])
            notes.append(f"{self.context.metric} on the validation split: {before:.4g} before, {after:.4g} after")
        return notes


def _can_fuse(parameters: list[nn.Parameter]) -> bool:
    return all(p.dtype in (torch.float32, torch.float64) for p in parameters)
