"""`python -m fleetfit.server.golden.make`: write the golden model anew, in every format, with what it must compute.

A small network of the layers that most others are made of, about ten million operations: some hundred microseconds on a
server, some milliseconds on a small board. Weights and samples are drawn with a fixed seed; what is expected is computed in
float64. A golden model that changed has another digest, so that every device's history begins anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from fleetfit.compress.export.registry import exporter
from fleetfit.compress.exporter import export_onnx
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.lowering import build_for
from fleetfit.compress.passes.base import Arrays
from fleetfit.core.digests import sha256_bytes
from fleetfit.server.golden import DESCRIPTION, FOLDER, SAMPLES

SEED: Final = 20_261_126
_COUNT: Final = 4
# Of the largest expected number. Float32 in another order is off by a millionth, TF32 by a thousandth; what a broken chip or a
# wrong kernel computes is off by much more.
TOLERANCE: Final = 5e-3


class Golden(nn.Module):
    """Convolutions, a depthwise one among them, pooling and a matrix product over (N, 8, 32, 32) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(512, 16),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 8, 32, 32) to (N, 16)."""
        return self.body(x)  # type: ignore[no-any-return]


def golden_module() -> Golden:
    """The network with its weights: He's initialization by NumPy, whose generator is the same everywhere."""
    module, generator = Golden(), np.random.default_rng(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = int(np.prod(parameter.shape[1:])) or 1
            scale = np.sqrt(2 / fan) if parameter.ndim > 1 else 0.1
            values = generator.standard_normal(tuple(parameter.shape)) * scale
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return module.eval()


def layered(module: Golden) -> LayeredModel:
    """The network as the exporters take it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "golden.pt2")
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(module, (torch.zeros(2, 8, 32, 32),), dynamic_shapes={"x": {0: batch}})
        torch.export.save(program, path)
        return load_pt2(path)


def make(folder: Path) -> Mapping[str, object]:
    """Write all files into `folder`; the description."""
    module = golden_module()
    samples = np.random.default_rng(SEED + 1).standard_normal((_COUNT, 8, 32, 32)).astype(np.float32)
    np.savez(folder / SAMPLES, x=samples)
    arrays = Arrays({"x": samples}, None)
    model = layered(module)
    onnx = export_onnx(model)
    (folder / "golden.onnx").write_bytes(onnx)
    formats = {"onnx": "golden.onnx"}
    for name in ("openvino", "ncnn"):
        one = exporter(name)
        build_for(one, model, onnx, arrays, folder)
        (folder / one.file).replace(folder / f"golden.{one.format}")
        formats[one.format] = f"golden.{one.format}"
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(samples).double()).numpy()
    description = {
        "files": formats,
        "sha256": {file: _digest(folder / file) for file in (*formats.values(), SAMPLES)},
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 8, 32, 32]},
        "output": {"name": model.outputs[0].name, "dtype": "float32", "shape": [-1, 16]},
        "tolerance": TOLERANCE * float(np.abs(expected).max()),
        "expected": [[float(f"{value:.9g}") for value in row] for row in expected],
    }
    (folder / DESCRIPTION).write_text(json.dumps(description) + "\n")
    return description


def _digest(path: Path) -> str:
    return sha256_bytes(path.read_bytes())


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
