"""The golden model: what a device measures to show that it is as it was. Files made by `fleetfit.server.golden.make`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from fleetfit.compress.tasks import Tensor

FOLDER: Final = Path(__file__).parent
DESCRIPTION: Final = "golden.json"
SAMPLES: Final = "golden.npz"


@dataclass(frozen=True)
class Golden:
    """The model in each format, the samples that it is fed with, and what it must make of them, within `tolerance`.

    `sha256` is by the files' names.
    """

    files: Mapping[str, Path]
    samples: Path
    sha256: Mapping[str, str]
    input: Tensor
    output: Tensor
    tolerance: float
    expected: Sequence[Sequence[float]]


@cache
def golden() -> Golden:
    """The golden model of this version."""
    read = json.loads((FOLDER / DESCRIPTION).read_text())
    return Golden(
        files={kind: FOLDER / file for kind, file in read["files"].items()},
        samples=FOLDER / SAMPLES,
        sha256=read["sha256"],
        input=Tensor.model_validate(read["input"]),
        output=Tensor.model_validate(read["output"]),
        tolerance=read["tolerance"],
        expected=read["expected"],
    )
