"""Training a student on its teacher's outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleetfit.compress.compute import CPU, choose_device, described, generators, placed
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import batch_size, outputs_over, spread_rows, take
from fleetfit.compress.passes.base import MOST_EPOCHS, Arrays, PassContext, PassReport
from fleetfit.compress.pruning.zeros import KeptZeros
from fleetfit.compress.training.augment import Augmented, Augmenter
from fleetfit.compress.training.features import Features
from fleetfit.compress.training.losses import DistillationLoss
from fleetfit.compress.training.teacher import Teacher
from fleetfit.compress.training.trainer import AfterStep, Score, Trained, Trainer
from fleetfit.core.errors import InvalidData, InvalidRecipe
from fleetfit.core.metrics import known_metric, metric_info
from fleetfit.core.statistics import metric_point, score_samples

if TYPE_CHECKING:
    from fleetfit.compress.passes.distill import Distill

# Looks at the validation split: at least and at most so many, and about this share of the time.
_FEWEST_LOOKS, _MOST_LOOKS, _LOOKING = 3, 10, 0.2
# So many samples tell what kind of outputs the original has, and how much they vary.
_KINDS_FROM = 4096
# So many tell how features vary, and how the student's begin to be mapped to them.
_FEATURES_FROM = 256
# Below this a batch's own statistics say little about the data's: batch norms then keep those they have.
_SMALLEST_NORM_BATCH = 16
# Fewer steps are no training: a budget in seconds that does not carry them is refused. A part of it is kept in reserve.
_FEWEST_STEPS, _PLANNED = 10, 0.95


def distill(
    model: LayeredModel, settings: Distill, context: PassContext, after_step: Sequence[AfterStep] = ()
) -> PassReport:
    """Train `model` in place on the outputs of `context.teacher`; the work of `Distill`.

    The weights that are best on the validation split are kept, among them those it began with. `after_step` is what others
    do after each change of the weights.
    """
    began = time.perf_counter()
    data = context.training_data("distill")
    if settings.samples is not None:
        data = spread_rows(data, settings.samples, context.seed)
    device = choose_device(context.compute)
    with torch.random.fork_rng(devices=generators(device)), placed(model, device):
        trainable = [p for p in model.module.parameters() if p.requires_grad and p.is_floating_point()]
        if not trainable:
            raise InvalidRecipe("distill finds no weight to train in this model; leave the step out")
        return _Distillation(model, settings, context, data, trainable, after_step, began).run()


class _Distillation:
    def __init__(
        self,
        model: LayeredModel,
        settings: Distill,
        context: PassContext,
        data: Arrays,
        trainable: list[nn.Parameter],
        after_step: Sequence[AfterStep],
        began: float,
    ) -> None:
        self.model, self.settings, self.context, self.data = model, settings, context, data
        zeros = KeptZeros(model)
        self.after_step: list[AfterStep] = [lambda number, steps: zeros.restore(), *after_step]
        self.trainable, self.began = trainable, began
        self.notes: list[str] = []
        context.report(0.0, "asking the original")
        if context.teacher is None:
            raise InvalidRecipe("distill needs the original as a trainable model; push it as a .pt2 archive")
        # One step sees `batch` samples; a model that takes only smaller ones sees them one after the other.
        self.chunk = batch_size(model, min(settings.batch, len(data)))
        self.batch = max(self.chunk, min(settings.batch, len(data)) // self.chunk * self.chunk)
        self.frozen_norms = self.chunk < _SMALLEST_NORM_BATCH
        self.per_epoch = len(data) // self.batch
        if self.per_epoch == 0:
            raise InvalidData(f"distill needs at least {self.batch} training samples and there are {len(data)}")
        self.features: Features | None = None
        self._begin()
        self.teacher = Teacher(context.teacher, data, model.device)
        self.targets = None if data.targets is None else torch.from_numpy(np.ascontiguousarray(data.targets))
        asking = time.perf_counter()
        some = self.teacher.some(_KINDS_FROM)
        self.asking = (time.perf_counter() - asking) / min(_KINDS_FROM, len(data))
        # Labels are those of the output that is judged, and the loss takes the first for it.
        judged = known_metric(context.metric)
        if judged is not None and judged.output in some:
            some = {judged.output: some[judged.output], **some}
        self.loss = DistillationLoss.for_outputs(
            some,
            None if self.targets is None else self.targets[:_KINDS_FROM].to(model.device),
            task=context.task,
            temperature=settings.temperature,
            label_weight=settings.label_weight,
            asked={name: (rule.loss, rule.weight) for name, rule in settings.outputs.items()},
        )
        if settings.augment and self.loss.labels and context.task != "classification":
            self.loss.labels = False
            self.notes.append("the labels were left out: they need not hold for pictures that augment changed")
        self.teacher_validation = (
            None if context.validation is None else outputs_over(context.teacher, context.validation)
        )

    def run(self) -> PassReport:
        """Train, and leave the best weights in the model."""
        if self.settings.features is not None:
            rows = np.arange(self.chunk if not self.model.dynamic_batch else min(_FEATURES_FROM, len(self.data)))
            samples = take(self.model, self.data, rows)
            self.features = Features(
                self.model, self.teacher.model, self.settings.features, samples, frozen_norms=self.frozen_norms
            )
            self.notes += self.features.said()
        try:
            return self._train()
        finally:
            if self.features is not None:
                self.features.close()

    def _train(self) -> PassReport:
        steps, chosen = self._steps()
        self._begin()
        report = self.context.report
        trained = self._trainer().run(
            steps, self._looks(steps), lambda part: report(part, "training on the original's outputs")
        )
        return PassReport(notes=self._said(trained), training_steps=trained.done, parameters=chosen)

    def _begin(self) -> None:
        """Set all random numbers to where they start."""
        seed = self.context.seed
        torch.manual_seed(seed)
        self.random = np.random.default_rng(seed)
        names = self.settings.augment
        self.augment = Augmenter(self.model, names, self.chunk, seed) if names else None
        if self.features is not None:
            self.features.reset()

    def _trainer(self) -> Trainer:
        return Trainer(
            self.model,
            self.settings,
            [*self.trainable, *(self.features.parameters() if self.features is not None else ())],
            self._gradients,
            self._judge,
            frozen_norms=self.frozen_norms,
            after_step=self.after_step,
        )

    def _steps(self) -> tuple[int, dict[str, int]]:
        """How many steps to take, and what to keep of it where that was not known before."""
        settings = self.settings
        if settings.steps is not None:
            return settings.steps, {}
        least = max(1, round((settings.epochs or settings.least_epochs or 0) * self.per_epoch))
        if settings.seconds is None:
            return least, {}
        fitting, said = self._fitting(settings.seconds)
        steps = max(fitting, least)
        if steps > fitting:
            said += f"; least_epochs: {settings.least_epochs:g} are {steps}"
        self.notes.append(f"{said}; steps: {steps} instead of seconds trains the same again")
        return steps, {"steps": steps}

    def _fitting(self, seconds: float) -> tuple[int, str]:
        """How many steps fit into the budget, counted from when the pass began, and how that was found."""
        first = np.random.default_rng(self.context.seed).permutation(len(self.data))[: 10 * self.batch]
        unknown = 0
        if self.augment is None and self.features is None:
            self.teacher.prepare(np.asarray(first, dtype=np.int64))
            unknown = len(self.data) - self.teacher.known()
        look = 0.0
        if self.context.validation is not None:
            start = time.perf_counter()
            self._judge()
            look = time.perf_counter() - start
        step = self._trainer().seconds_per_step(seconds)
        spent = time.perf_counter() - self.began

        def takes(steps: int) -> float:
            return steps * step + min(steps * self.batch, unknown) * self.asking + (self._looks(steps) + 1) * look

        said = f"a step takes {step:.2g} s here, a look at the validation split {look:.2g} s"
        left = seconds * _PLANNED - spent
        if takes(_FEWEST_STEPS) > left and self.settings.least_epochs is None:
            need = (takes(_FEWEST_STEPS) + spent) / _PLANNED
            raise InvalidRecipe(
                f"distill cannot train in {seconds:g} s: {said}, and {_FEWEST_STEPS} steps are the fewest worth taking; give "
                f"it {math.ceil(need * 1.2)} s or more, or a smaller batch"
            )
        low, high = 0, max(2, min(int(left / step) + 1, int(MOST_EPOCHS * self.per_epoch)))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if takes(middle) <= left else (low, middle)
        return low, f"{seconds:g} s are enough for {low} steps: {said}"

    def _looks(self, steps: int) -> int:
        # A training step costs about three times as much per sample as a look.
        count = 1 if self.context.validation is None else len(self.context.validation)
        return min(_MOST_LOOKS, max(_FEWEST_LOOKS, round(_LOOKING * 3 * steps * self.batch / count)))

    def _gradients(self, number: int) -> None:
        rows = self._rows(number)
        pieces = len(rows) // self.chunk
        for piece in range(pieces):
            chosen = rows[piece * self.chunk : (piece + 1) * self.chunk]
            loss = self._loss(chosen)
            if not bool(torch.isfinite(loss)):
                raise InvalidRecipe(
                    f"distill diverged at step {number}; give it a smaller learning_rate than {self.settings.learning_rate}"
                )
            (loss / pieces).backward()  # type: ignore[no-untyped-call]

    def _loss(self, rows: NDArray[np.int64]) -> torch.Tensor:
        inputs = take(self.model, self.data, rows)
        targets = None if self.targets is None else self.targets[torch.from_numpy(rows)].to(self.model.device)
        changed = Augmented(inputs) if self.augment is None else self.augment(inputs)
        student = self.model.call(changed.inputs)
        # What is in memory is the answer to inputs as they are, and has no features.
        from_memory = self.augment is None and self.features is None
        teacher = self.teacher.of(rows) if from_memory else self.teacher.answer(changed.inputs)
        loss = self.loss(student, teacher, targets, changed.share)
        if changed.partner is not None and targets is not None:
            loss = loss + self.loss.label(student, targets[changed.partner], 1 - changed.share)
        if self.features is not None:
            loss = loss + self.settings.feature_weight * self.features.loss()
        return loss

    def _rows(self, number: int) -> NDArray[np.int64]:
        """The samples of a step: every epoch has its own order."""
        position = (number - 1) % self.per_epoch
        if position == 0:
            self.order = self.random.permutation(len(self.data))
        return np.asarray(self.order[position * self.batch : (position + 1) * self.batch], dtype=np.int64)

    def _judge(self) -> Score:
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
        if not self.context.metric or (validation.targets is None and metric_info(self.context.metric).needs_targets):
            return -loss, 0.0
        ours, theirs = (
            {name: value.numpy() for name, value in given.items()} for given in (outputs, self.teacher_validation)
        )
        scores = score_samples(self.context.metric, ours, validation.targets, theirs)
        value = metric_point(self.context.metric, scores)
        return (value if metric_info(self.context.metric).higher_is_better else -value), -loss

    def _said(self, trained: Trained) -> list[str]:
        weights = {name: "" if weight == 1 else f", times {weight:g}" for name, weight in self.loss.weights.items()}
        kinds = ", ".join(f"{name} as {kind.value}{weights[name]}" for name, kind in self.loss.kinds.items())
        notes = [f"{trained.done} steps of {self.batch} samples; the original's outputs: {kinds}", *self.notes]
        if self.model.device != CPU:
            notes.append(f"trained on {described(self.model.device)}")
        if self.context.validation is None:
            return notes
        if trained.at == 0:
            return [*notes, "training did not improve it on the validation split; the weights it began with were kept"]
        what = "the weights" if self.settings.ema is None else "the averaged weights"
        notes.append(f"{what} after step {trained.at} are the best on the validation split")
        if self.context.metric and self.context.validation.targets is not None:
            before, after = abs(trained.begun_with[0]), abs(trained.best[0])
            notes.append(f"{self.context.metric} on the validation split: {before:.4g} before, {after:.4g} after")
        return notes
