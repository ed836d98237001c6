"""Pictures changed at random, so that the original is asked about more inputs than there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fleetfit.compress.graph import LayeredModel
from fleetfit.core.errors import InvalidRecipe

_SMALLEST_SIDE = 4
# Shifts by up to this share of a side; cutout hides a square of this share of the shorter side.
_SHIFT, _CUTOUT = 1 / 8, 1 / 4


@dataclass
class Augmented:
    """A batch of changed inputs. With mixup, the labels are those of the batch by `share` and those of `partner` by the rest."""

    inputs: dict[str, torch.Tensor]
    partner: torch.Tensor | None = None
    share: float = 1.0


class Augmenter:
    """Changes the pictures among a model's inputs; several of them are changed alike, and other inputs stay.

    Args:
        model: Its sample inputs say which inputs are pictures: floating point, (samples, channels, height, width).
        names: What is done, in this order: flip (left and right, half of the samples), shift (by up to an eighth of each
            side; the border is repeated), cutout (a square of a quarter of the shorter side becomes the batch's mean;
            DeVries, Taylor 2017), mixup (each sample is mixed with another of its batch; Zhang et al. 2018).
        batch: Samples that come at a time.
        seed: The same seed gives the same changes in the same order of batches.

    Raises:
        InvalidRecipe: The model takes no pictures, or something cannot be done with what it takes.
    """

    def __init__(self, model: LayeredModel, names: Sequence[str], batch: int, seed: int) -> None:
        shapes = {t.name: tuple(model.sample_inputs[t.name].shape) for t in model.inputs}
        self._pictures = [name for name, value in model.sample_inputs.items() if _is_picture(value)]
        if not self._pictures:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InvalidRecipe(
                f"augment works on pictures, floating point of the shape (samples, channels, height, width), and the model "
                f"takes {found}; leave augment out"
            )
        if len({shapes[name][2:] for name in self._pictures}) > 1:
            raise InvalidRecipe(
                f"augment changes all pictures alike, and {', '.join(self._pictures)} differ in size; leave it out"
            )
        if "mixup" in names and (len(self._pictures) < len(shapes) or batch < 2):
            why = "this model takes one at a time" if batch < 2 else "not all inputs of this model are pictures"
            raise InvalidRecipe(f"mixup mixes the pictures of one batch, and {why}; leave mixup out")
        self._numbers = np.random.default_rng([seed, 1])
        self._names = list(names)

    def __call__(self, inputs: dict[str, torch.Tensor]) -> Augmented:
        """The changed batch; the given tensors are not written to."""
        result = Augmented(dict(inputs))
        count, _, height, width = inputs[self._pictures[0]].shape
        for name in self._names:
            if name == "mixup":
                self._mix(result, count)
                continue
            change = getattr(self, f"_{name}")(count, height, width)
            for picture in self._pictures:
                result.inputs[picture] = change(result.inputs[picture])
        return result

    def _flip(self, count: int, height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
        chosen = torch.from_numpy(self._numbers.random(count) < 0.5)[:, None, None, None]
        return lambda x: torch.where(chosen.to(x.device), x.flip(-1), x)

    def _shift(self, count: int, height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
        rows, columns = (self._moved(count, side) for side in (height, width))
        samples = torch.arange(count)[:, None, None]
        return lambda x: x.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _moved(self, count: int, side: int) -> torch.Tensor:
        most = max(1, int(_SHIFT * side))
        by = torch.from_numpy(self._numbers.integers(-most, most + 1, count))
        return (torch.arange(side) + by[:, None]).clamp(0, side - 1)

    def _cutout(self, count: int, height: int, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
        size = max(1, int(_CUTOUT * min(height, width)))
        inside = []
        for side in (height, width):
            first = torch.from_numpy(self._numbers.integers(0, side - size + 1, count))[:, None]
            at = torch.arange(side)
            inside.append((at >= first) & (at < first + size))
        hidden = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
        return lambda x: torch.where(hidden.to(x.device), x.mean((0, 2, 3), keepdim=True), x)

    def _mix(self, batch: Augmented, count: int) -> None:
        # Any share is as likely as any other, as where a teacher labels the mixtures (Beyer et al. 2022).
        share = float(self._numbers.random())
        batch.share = max(share, 1 - share)
        batch.partner = torch.from_numpy(self._numbers.permutation(count))
        for name in self._pictures:
            x = batch.inputs[name]
            batch.inputs[name] = batch.share * x + (1 - batch.share) * x[batch.partner]


def _is_picture(value: torch.Tensor) -> bool:
    if value.dim() != 4 or not value.is_floating_point():
        return False
    channels, height, width = value.shape[1:]
    # Channels last would have more channels than columns.
    return min(height, width) >= _SMALLEST_SIDE and channels <= min(height, width)
