"""The builds of the benchmark against the peers, each with its settings: `python -m benchmarks.peers_builds [--quick] [ENTRY ...]`.

May run beside other work: nothing is timed that is reported. What is finished is kept and not made again. How the peers are used
at their defaults is taken from

- torch-pruning: its README, "High-level Pruners" (half of the channels, then fine-tuning), https://github.com/VainF/Torch-Pruning;
  and once more at half of the multiply-accumulates, where widths become odd ones;
- ONNX Runtime: `quantize_static` with nothing but calibration data,
  https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html;
- NNCF: `nncf.quantize` on the ONNX file, and on OpenVINO's model, https://github.com/openvinotoolkit/nncf. Its quantization-aware
  training makes the same graphs and so the same latency; it is not run;
- OpenVINO: `convert_model` and `save_model` (half floats by default),
  https://docs.openvino.ai/2024/openvino-workflow/model-preparation/conversion-parameters.html;
- Olive: the pass `OnnxStaticQuantization` with nothing but calibration data, https://microsoft.github.io/Olive/.

Install them with `pip install torch-pruning==1.6.1 nncf==3.4.0 olive-ai==0.13.0 openvino`; none of our versions changes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers_original import (
    FULL,
    QUICK,
    Floats,
    Settings,
    Split,
    Splits,
    original,
    say,
    splits,
    teaching,
    train,
    without_vnni,
)
from fleetfit.runtimes.archive import pack
from fleetfit.runtimes.base import LoadedModel
from fleetfit.runtimes.openvino import MEMBERS, import_openvino
from fleetfit.runtimes.registry import runtime

MOST_DROP, CALIBRATED_ON, TUNING_RATE = 1.0, 300, 0.05
INPUT = "image"


@dataclass
class Work:
    """What every entry is made from."""

    settings: Settings
    data: Splits
    model: nn.Module
    onnx: bytes = b""
    validation: float = 0.0

    @property
    def folder(self) -> Path:
        """Where builds lie."""
        return self.settings.folder()

    def calibration(self, seed: int) -> Floats:
        """Pictures to calibrate with, others for each seed."""
        rows = np.random.default_rng([seed, 7]).permutation(len(self.data.train.images))[:CALIBRATED_ON]
        return self.data.train.images[rows]

    def tuned(self, model: nn.Module, seed: int, *, taught: bool) -> nn.Module:
        """After the fine-tuning that every peer gets, with the original's answers or without."""
        answers = teaching(self.settings, self.model, self.data) if taught else None
        epochs = self.settings.tuning_epochs
        train(model, self.data.train, epochs, TUNING_RATE, seed=seed, answers=answers)
        return model


@dataclass
class Built:
    """A build and what is to be told about it."""

    content: bytes
    runtime: str = "onnxruntime"
    notes: dict[str, Any] = field(default_factory=dict)


def accuracy(content: bytes, where: str, split: Split) -> float:
    """Top-1 accuracy in points of a build in its runtime."""
    model: LoadedModel = runtime(where).load(content, threads=1)
    right = 0
    for at in range(0, len(split.images), 500):
        (logits,) = model.run({INPUT: split.images[at : at + 500]}).values()
        right += int((logits.argmax(1) == split.targets[at : at + 500]).sum())
    model.close()
    return 100 * right / len(split.images)


def to_onnx(model: nn.Module) -> bytes:
    """The network as an ONNX file that takes any batch."""
    stored = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    program = torch.onnx.export(
        stored, (torch.zeros(2, 1, 28, 28),), dynamo=True, dynamic_shapes=shapes, output_names=["logits"], verbose=False
    )
    assert program is not None  # noqa: S101 - only without dynamo
    return bytes(program.model_proto.SerializeToString())


def _convolutions(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def _pruned(work: Work, ratio: float, *, fewer_macs: float | None = None, round_to: int | None = None) -> nn.Module:
    """torch-pruning by magnitude; with `fewer_macs` the smallest ratio of channels that saves as much."""
    import torch_pruning

    sample = torch.zeros(1, 1, 28, 28)
    whole = torch_pruning.utils.count_ops_and_params(work.model, sample)[0]
    for share in [ratio] if fewer_macs is None else np.arange(0.25, 0.6, 0.01):
        model = copy.deepcopy(work.model)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            sample,
            importance=torch_pruning.importance.MagnitudeImportance(),
            pruning_ratio=float(share),
            ignored_layers=[model.head],
            round_to=round_to,
        )
        pruner.step()
        left = torch_pruning.utils.count_ops_and_params(model, sample)[0]
        # Half of the channels of a network with a first and a last layer leave a little more than a quarter.
        if fewer_macs is None or left <= (1 - fewer_macs) * whole * 1.02:
            return model.to(memory_format=torch.channels_last)
    raise RuntimeError(f"no share of channels saves {fewer_macs:.0%}")


def torch_pruning_default(work: Work, seed: int) -> Built:
    """Half of the channels of every layer, fine-tuned on the labels."""
    model = work.tuned(_pruned(work, 0.5), seed, taught=False)
    return Built(to_onnx(model), notes={"channels": _convolutions(model)})


def torch_pruning_half_macs(work: Work, seed: int) -> Built:
    """Half of the multiply-accumulates, fine-tuned on the labels."""
    model = work.tuned(_pruned(work, 0.5, fewer_macs=0.5), seed, taught=False)
    return Built(to_onnx(model), notes={"channels": _convolutions(model)})


def _static(content: bytes, pictures: Floats, **settings: Any) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(np.array_split(pictures, len(pictures) // 50))

        def get_next(self) -> dict[str, Floats] | None:
            return next(({INPUT: part} for part in self.left), None)

    with tempfile.TemporaryDirectory() as name:
        before, ready, after = (Path(name) / f"{part}.onnx" for part in ("before", "ready", "after"))
        before.write_bytes(content)
        quant_pre_process(str(before), str(ready))
        quantize_static(str(ready), str(after), Reader(), **settings)
        return after.read_bytes()


def onnxruntime_default(work: Work, seed: int) -> Built:
    """Static int8 as it comes: signed activations, one scale for each tensor."""
    return Built(_static(work.onnx, work.calibration(seed)))


def onnxruntime_x86(work: Work, seed: int) -> Built:
    """Static int8 as its documentation advises for x86: unsigned activations, per channel, 7-bit weights without VNNI."""
    return Built(_static(work.onnx, work.calibration(seed), **_x86()))


def _x86() -> dict[str, Any]:
    from onnxruntime.quantization import QuantType

    return {"activation_type": QuantType.QUInt8, "per_channel": True, "reduce_range": without_vnni()}


def nncf_onnx(work: Work, seed: int) -> Built:
    """`nncf.quantize` on the ONNX file."""
    import nncf
    import onnx

    pictures = work.calibration(seed)
    data = nncf.Dataset(list(pictures[:, None]), lambda picture: {INPUT: picture})
    quantized = nncf.quantize(onnx.load_from_string(work.onnx), data)
    return Built(quantized.SerializeToString())


def _openvino_model(work: Work) -> Any:
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "original.onnx"
        path.write_bytes(work.onnx)
        return openvino.convert_model(str(path))


def _representation(model: Any, **settings: Any) -> bytes:
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as name:
        openvino.save_model(model, f"{name}/model.xml", **settings)
        return pack({member: (Path(name) / member).read_bytes() for member in MEMBERS})


def openvino_default(work: Work, seed: int) -> Built:
    """OpenVINO's representation as it comes; the seed changes nothing."""
    return Built(_representation(_openvino_model(work)), "openvino")


def openvino_original(work: Work, seed: int) -> Built:
    """The original in single floats in OpenVINO, to compare with."""
    return Built(_representation(_openvino_model(work), compress_to_fp16=False), "openvino")


def nncf_openvino(work: Work, seed: int) -> Built:
    """`nncf.quantize` on OpenVINO's model: what OpenVINO's documentation does for int8."""
    import nncf

    data = nncf.Dataset(list(work.calibration(seed)[:, None]))
    return Built(_representation(nncf.quantize(_openvino_model(work), data)), "openvino")


_OLIVE_DATA = """
import numpy as np
from olive.data.registry import Registry

class Pictures:
    def __init__(self, path):
        self.pictures = np.load(path)
    def __len__(self):
        return len(self.pictures)
    def __getitem__(self, row):
        return {"image": self.pictures[row]}, 0

@Registry.register_dataset()
def fleetfit_pictures(data_name=None, path=None, **_):
    return Pictures(path)
"""


def olive_default(work: Work, seed: int) -> Built:
    """Olive's pass `OnnxStaticQuantization` as it comes."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    import olive

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "original.onnx").write_bytes(work.onnx)
        # Stays: Olive looks for the source of what an earlier run of this process has registered.
        script = work.folder / "olive_pictures.py"
        script.write_text(_OLIVE_DATA)
        np.save(folder / "pictures.npy", work.calibration(seed))
        data = {
            "name": "pictures",
            "user_script": str(script),
            "load_dataset_config": {"type": "fleetfit_pictures", "params": {"path": str(folder / "pictures.npy")}},
            "pre_process_data_config": {"type": "skip_pre_process"},
            "post_process_data_config": {"type": "skip_post_process"},
            "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 50}},
        }
        olive.run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(folder / "original.onnx")},
                "data_configs": [data],
                "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "pictures"}},
                "output_dir": str(folder / "out"),
                "cache_dir": str(folder / "cache"),
            }
        )
        (made,) = (folder / "out").rglob("*.onnx")
        return Built(made.read_bytes())


def expert(work: Work, seed: int) -> Built:
    """By hand: magnitude with `round_to` 16 at 75 % fewer multiply-accumulates, distillation, ONNX Runtime's static int8."""
    model = work.tuned(_pruned(work, 0.5, fewer_macs=0.75, round_to=16), seed, taught=True)
    content = _static(to_onnx(model), work.calibration(seed), **_x86())
    return Built(content, notes={"channels": _convolutions(model)})


def original_onnx(work: Work, seed: int) -> Built:
    """The original in ONNX Runtime."""
    return Built(work.onnx)


def ours(work: Work, seed: int) -> Built:
    """The fastest of our recipes that keeps the accuracy."""
    from benchmarks.peers_ours import best_of_ours

    content, notes = best_of_ours(work.settings, work.data, work.model, work.validation, seed)
    return Built(content, notes=notes)


Make = Callable[[Work, int], Built]
# The kind decides with what each is compared; those that know no seed are made once.
ENTRIES: dict[str, tuple[Make, str, bool]] = {
    "original": (original_onnx, "original", False),
    "original, OpenVINO": (openvino_original, "original", False),
    "OpenVINO": (openvino_default, "default", False),
    "ONNX Runtime static int8": (onnxruntime_default, "default", True),
    "ONNX Runtime static int8, for x86": (onnxruntime_x86, "advised", True),
    "NNCF on ONNX": (nncf_onnx, "default", True),
    "NNCF on OpenVINO": (nncf_openvino, "default", True),
    "Olive static int8": (olive_default, "default", True),
    "expert": (expert, "expert", True),
    "fleetfit": (ours, "ours", True),
    "torch-pruning, half the channels": (torch_pruning_default, "default", True),
    "torch-pruning, half the MACs": (torch_pruning_half_macs, "default", True),
}


def made(settings: Settings, only: list[str] | None = None, threads: int = 1) -> tuple[Work, list[dict[str, Any]]]:
    """All builds, those that are missing made now: a line for each entry and seed, with `error` where one cannot be made."""
    torch.set_num_threads(threads)
    data = splits(settings)
    work = Work(settings, data, original(settings, data))
    exported = settings.folder() / "original.onnx"
    if not exported.exists():
        exported.write_bytes(to_onnx(work.model))
    work.onnx = exported.read_bytes()
    work.validation = accuracy(work.onnx, "onnxruntime", data.validation)
    lines = []
    for name, (make, kind, seeded) in ENTRIES.items():
        for seed in range(settings.seeds if seeded else 1):
            if only and name not in only:
                continue
            lines.append(_one(work, name, make, kind, seed))
    return work, lines


def _one(work: Work, name: str, make: Make, kind: str, seed: int) -> dict[str, Any]:
    stem = f"{''.join(letter if letter.isalnum() else '-' for letter in name)}-{seed}"
    path = work.folder / f"{stem}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    began = time.monotonic()
    line: dict[str, Any] = {"entry": name, "kind": kind, "seed": seed, "how": (make.__doc__ or "").strip()}
    try:
        built = make(work, seed)
    except Exception as error:  # noqa: BLE001 - a peer's failure is a result
        say(f"{name}, seed {seed}: {type(error).__name__}: {error}")
        # Not kept: the next run tries again.
        return {**line, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    (work.folder / f"{stem}.build").write_bytes(built.content)
    line |= {
        "file": f"{stem}.build",
        "runtime": built.runtime,
        "bytes": len(built.content),
        "drop": work.validation - accuracy(built.content, built.runtime, work.data.validation),
        "seconds": time.monotonic() - began,
        "notes": built.notes,
    }
    path.write_text(json.dumps(line, indent=2) + "\n")
    say(f"{name}, seed {seed}: drop {line['drop']:.2f}, {line['bytes']} bytes, {line['seconds']:.0f} s, {built.notes}")
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers_builds")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--threads", type=int, default=1, help="for training; more than one pays on a quiet machine only"
    )
    parser.add_argument("entries", nargs="*", choices=[*ENTRIES, []])
    options = parser.parse_args()
    _, all_lines = made(QUICK if options.quick else FULL, options.entries, options.threads)
    sys.exit(any("error" in line for line in all_lines))
