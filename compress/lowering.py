"""One finished model in another runtime's format, compared with PyTorch before it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleetfit.compress.arrays import read_split
from fleetfit.compress.export.base import Exporter
from fleetfit.compress.export.registry import exporter
from fleetfit.compress.exporter import OnnxSession, prove_session
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.tasks import Build, Lower
from fleetfit.core.digests import sha256_file

Report = Callable[[float, str], None]
_LOADED = 0.4


def lower(work: Lower, model: Path, onnx: Path, validation: Path | None, out: Path, report: Report) -> Build:
    """Write the build to `out`. Raises InvalidModel where the format cannot express the model or computes something else."""
    import torch

    one = exporter(work.runtime)
    torch.set_num_threads(work.threads)
    report(0.0, "loading the model")
    layered = load_pt2(model)
    data = read_split(validation) if validation is not None else None
    report(_LOADED, f"building for {one.title}")
    return build_for(one, layered, onnx.read_bytes(), data, out)


def build_for(one: Exporter, model: LayeredModel, onnx: bytes, validation: Arrays | None, out: Path) -> Build:
    """The exporter's build in `out`, proven on real inputs where there are any. `onnx` is the same model."""
    content = one.export(model, onnx)
    session = one.session(content, OnnxSession(onnx).input_names, [tensor.name for tensor in model.outputs])
    difference = prove_session(model, session, validation, one.title)
    path = out / one.file
    path.write_bytes(content)
    return Build(
        file=path.name,
        runtime=one.runtime,
        format=one.format,
        size_bytes=len(content),
        sha256=sha256_file(path),
        inputs=model.inputs,
        outputs=model.outputs,
        largest_difference=difference,
    )
