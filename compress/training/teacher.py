"""The teacher's outputs for the samples that training meets, each computed once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fleetfit.compress.compute import CPU, move
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import as_images, outputs_over
from fleetfit.compress.passes.base import Arrays
from fleetfit.core.errors import InvalidData

# Samples asked for at a time: fewer calls, and whole batches also for models that take one sample.
_AHEAD = 1024


class Teacher:
    """Answers for rows of a split, from memory where it was asked before. The model it is made from is not changed.

    It is asked on `device`, and so are its answers; the memory of them is the processor's.
    """

    def __init__(self, model: LayeredModel, data: Arrays, device: torch.device = CPU) -> None:
        self.model = model.clone()
        move(self.model, device)
        as_images(self.model.module)
        self._data = data
        self._known = np.zeros(len(data), dtype=np.bool_)
        self._answers: dict[str, torch.Tensor] = {}

    def of(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """The outputs for these rows. Raises InvalidData where one is not finite."""
        missing = rows[~self._known[rows]]
        if len(missing):
            self._ask(missing)
        index = torch.from_numpy(rows)
        device = self.model.device
        return {name: values[index].to(device) for name, values in self._answers.items()}

    def prepare(self, rows: NDArray[np.int64]) -> None:
        """Ask for many rows at once: quicker than batch by batch."""
        missing = rows[~self._known[rows]]
        for begin in range(0, len(missing), _AHEAD):
            self._ask(missing[begin : begin + _AHEAD])

    def some(self, count: int) -> dict[str, torch.Tensor]:
        """The outputs for the first samples."""
        return self.of(np.arange(min(count, len(self._data)), dtype=np.int64))

    def known(self) -> int:
        """For how many samples the outputs are in memory."""
        return int(self._known.sum())

    def answer(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs for a batch of inputs of which none is in memory. Raises InvalidData where one is not finite."""
        self.model.module.eval()
        with torch.no_grad():
            outputs = self.model.call(inputs)
        _check(outputs)
        return outputs

    def _ask(self, rows: NDArray[np.int64]) -> None:
        inputs = {name: values[rows] for name, values in self._data.inputs.items()}
        outputs = outputs_over(self.model, Arrays(inputs, None))
        index = torch.from_numpy(rows)
        _check(outputs)
        for name, value in outputs.items():
            if name not in self._answers:
                self._answers[name] = torch.zeros((len(self._data), *value.shape[1:]), dtype=value.dtype)
            self._answers[name][index] = value
        self._known[rows] = True


def _check(outputs: dict[str, torch.Tensor]) -> None:
    for name, value in outputs.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InvalidData(f"the original's output {name} is not finite on the training data; look for NaN in it")
