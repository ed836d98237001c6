"""The builds of the quantization table: `python -m benchmarks.quantization_builds [--quick] [BUILD ...]`.

One small convolutional network, trained on Fashion-MNIST here, in every kind of number. May run beside other work: nothing is
timed. What is finished is kept in the benchmark's cache and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import cache_folder
from benchmarks.training import convolutional, layered, pictures, train
from fleetfit.client.demo.images import load_images
from fleetfit.compress.exporter import export_onnx, predict_onnx, prove_equal
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.passes.base import Arrays, Pass, PassContext
from fleetfit.compress.passes.distill import Distill
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.compress.passes.quantize_aware_training import QuantizeAwareTraining
from fleetfit.compress.quantization.operators import count_operators
from fleetfit.core.statistics import score_samples


@dataclass(frozen=True)
class Settings:
    """How much is trained; `rounds` of the timing decide no build."""

    train: int = 24_000
    validation: int = 4_000
    epochs: int = 5
    tuning_epochs: float = 2.0
    seed: int = 0
    rounds: int = 60

    def folder(self) -> Path:
        """Where the network and its builds lie."""
        made_with = {name: value for name, value in asdict(self).items() if name != "rounds"}
        passes = {step.pass_name(): step.version for step in (Quantize, QuantizeAwareTraining, Distill)}
        return cache_folder("quantization", {**made_with, "passes": passes})


FULL = Settings()
QUICK = Settings(train=1_500, validation=500, epochs=1, tuning_epochs=0.5, rounds=5)
BATCH, RATE = 64, 4e-3
# Below that of the build without any floats, so that there is something to choose.
MIXED_ERROR = 0.015


@dataclass(frozen=True)
class Entry:
    """One line of the table. `kind` decides what is claimed of it; its accuracy is held against that of `control`."""

    kind: str
    steps: tuple[Pass, ...] = ()
    control: str = "fp32"
    quick: bool = False


def entries(settings: Settings) -> dict[str, Entry]:
    """All builds by name; of a trial's, those that are quick to make."""
    longer, trained_on = settings.tuning_epochs, "fp32, trained on"
    found = {
        "fp32": Entry("float", quick=True),
        "fp16": Entry("half", (Quantize(dtype="fp16"),), quick=True),
        "int4, weights only": Entry("few bits", (Quantize(dtype="int4"),), quick=True),
        "int8 dynamic": Entry("dynamic", (Quantize(mode="dynamic"),), quick=True),
    }
    for calibration in ("minmax", "percentile", "mse", "entropy"):
        for bits in (7, 8):
            step = Quantize(calibration=calibration, reduce_range=bits == 7)
            name = f"int8 static, {calibration}, {bits}-bit weights"
            found[name] = Entry("static", (step,), quick=calibration == "minmax")
    for bits in (7, 8):
        step = Quantize(per_channel=False, reduce_range=bits == 7)
        found[f"int8 static, minmax, {bits}-bit weights, one scale per tensor"] = Entry("static", (step,))
    found |= {
        "int8 static, minmax, 7-bit weights, signed activations": Entry("signed", (Quantize(activations="signed"),)),
        "int8 static, minmax, 7-bit weights, part in floats": Entry(
            "mixed", (Quantize(keep_float="auto", max_error=MIXED_ERROR),)
        ),
        # The same training as that of the build below, without any rounding.
        trained_on: Entry("control", (Distill(epochs=longer, learning_rate=3e-4),)),
        "int8 static, minmax, 7-bit weights, trained with rounding": Entry(
            "static", (QuantizeAwareTraining(epochs=longer), Quantize()), control=trained_on
        ),
    }
    return found if settings != QUICK else {name: entry for name, entry in found.items() if entry.quick}


class Work:
    """The network, its data, and what is made of both."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, settings.folder()
        images = load_images(say)
        order = np.random.default_rng(settings.seed).permutation(len(images.images))
        known = pictures(images.images)
        rows, held_out = order[: settings.train], order[-settings.validation :]
        self._train = known[rows], images.targets[rows].astype(np.int64)
        self._validation = known[held_out], images.targets[held_out].astype(np.int64)
        self._test = pictures(images.test_images), images.test_targets.astype(np.int64)

    @cached_property
    def original(self) -> LayeredModel:
        """The trained network; trained now where it is not in the cache."""
        path = self.folder / "original.pt"
        torch.manual_seed(self.settings.seed)
        model = convolutional()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            say("training the original")
            train(model, *self._train, epochs=self.settings.epochs, batch=BATCH, learning_rate=RATE)
            torch.save(model.state_dict(), path)
        return layered(model, self._train[0])

    @property
    def feeds(self) -> dict[str, NDArray[np.float32]]:
        """One picture, to time with."""
        return {self.original.inputs[0].name: np.ascontiguousarray(self._test[0][:1])}

    def made(self, name: str, entry: Entry) -> dict[str, Any]:
        """The line of a build, made now where it is not in the cache."""
        stem = "".join(letter if letter.isalnum() else "-" for letter in name)
        path = self.folder / f"{stem}.json"
        steps = [{step.pass_name(): step.parameters()} for step in entry.steps]
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if known.get("steps") == steps:
            return known
        began = time.monotonic()
        content, notes = self._build(entry)
        right = self._right(content)
        counts = count_operators(content)
        (self.folder / f"{stem}.onnx").write_bytes(content)
        np.save(self.folder / f"{stem}.npy", right)
        line = {
            "build": name,
            "kind": entry.kind,
            "steps": steps,
            "control": entry.control,
            "bytes": len(content),
            "test_accuracy": 100 * float(right.mean()),
            "integer_operators": counts.integer,
            "operators": counts.total,
            "notes": notes,
            "seconds": time.monotonic() - began,
            "stem": stem,
        }
        path.write_text(json.dumps(line, indent=2) + "\n")
        say(
            f"{name}: {len(content)} bytes, {line['test_accuracy']:.2f} %, {counts.integer} of {counts.total} on integers"
        )
        return line

    def content(self, line: dict[str, Any]) -> bytes:
        """The file of a build."""
        return (self.folder / f"{line['stem']}.onnx").read_bytes()

    def outputs(self, line: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """What a build says to the validation pictures."""
        return predict_onnx(self.content(line), self._named(self._validation), None)

    def right(self, line: dict[str, Any]) -> NDArray[Any]:
        """Of every test picture, whether the build names its class."""
        found: NDArray[Any] = np.load(self.folder / f"{line['stem']}.npy")
        return found

    def _build(self, entry: Entry) -> tuple[bytes, list[str]]:
        model, context, notes = self.original.clone(), self._context(), []
        for step in entry.steps:
            notes += step.apply(model, context).notes
        content = export_onnx(model)
        prove_equal(model, content, context.validation)
        built = entry.steps[-1].build(content, context) if entry.steps else None
        return (content, notes) if built is None else (built.content, notes + built.notes)

    def _context(self) -> PassContext:
        return PassContext(
            self._named(self._train),
            self._named(self._validation),
            self.original.clone(),
            "accuracy",
            "classification",
            self.settings.seed,
            lambda part, activity: None,
        )

    def _right(self, content: bytes) -> NDArray[Any]:
        test = self._named(self._test)
        return score_samples("accuracy", predict_onnx(content, test, None), test.targets)

    def _named(self, split: tuple[NDArray[np.float32], NDArray[np.int64]]) -> Arrays:
        return Arrays({self.original.inputs[0].name: split[0]}, split[1])


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Make the builds that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization_builds")
    parser.add_argument("--quick", action="store_true", help="of a hardly trained network")
    parser.add_argument("build", nargs="*", help="only these, by name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = QUICK if options.quick else FULL
    work = Work(settings)
    for name, entry in entries(settings).items():
        if not options.build or name in options.build:
            work.made(name, entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
