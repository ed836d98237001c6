"""One finished model in another runtime's format, compared with PyTorch before it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetfit.compress.arrays import read_split
from fleetfit.compress.evidence import Judged, first_samples, with_evidence
from fleetfit.compress.export.base import Exporter
from fleetfit.compress.export.registry import exporter
from fleetfit.compress.exporter import OnnxSession, Session, predict_onnx, prove_session
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import outputs_over
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays
from fleetfit.compress.quantization.error import output_errors
from fleetfit.compress.quantization.symmetric import numbers_of
from fleetfit.compress.tasks import Build, Lower
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import InvalidModel
from fleetfit.core.metrics import metric_info

Report = Callable[[float, str], None]
_LOADED, _BUILT = 0.4, 0.8
# A quantized build in another dialect may be so many times as far from the float model as the first, and so much farther.
_TIMES, _FARTHER = 2.0, 0.05
_HELD = 64


def lower(
    work: Lower,
    model: Path,
    onnx: Path,
    validation: Path | None,
    out: Path,
    report: Report,
    original: Path | None = None,
) -> Build:
    """Write the build to `out`. Raises InvalidModel where the format cannot express the model or computes something else.

    `original` is the original's build for ONNX Runtime, for evidence of metrics that compare with it.
    """
    import torch

    one = exporter(work.runtime)
    torch.set_num_threads(work.threads)
    report(0.0, "loading the model")
    layered = load_pt2(model)
    data = read_split(validation) if validation is not None else None
    report(_LOADED, f"building for {one.title}")
    build, session = _built(one, layered, onnx.read_bytes(), data, out)
    if not work.evidence:
        return build
    report(_BUILT, "computing what the build gives here")
    batch = None if layered.dynamic_batch else layered.sample_batch()
    samples = first_samples(layered.inputs, data, batch)
    judged = judged_here(work.metric, data)
    floats = reference = None
    if judged is not None:
        floats = {name: value.numpy() for name, value in outputs_over(layered, judged).items()}
        reference = predict_onnx(original.read_bytes(), judged, batch) if original is not None else None
    known = Judged(work.metric, judged, floats, reference)
    return with_evidence(build, session, known, samples, layered_outputs(layered), one.availability().version, out)


def judged_here(metric: str, validation: Arrays | None) -> Arrays | None:
    """The validation split, where it has what the metric needs."""
    if not metric or validation is None:
        return None
    return validation if validation.targets is not None or not metric_info(metric).needs_targets else None


def layered_outputs(model: LayeredModel) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """The model in evaluation mode as a function of arrays."""

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        import torch

        model.module.eval()
        with torch.no_grad():
            found = model.call({name: torch.from_numpy(values) for name, values in inputs.items()})
        # NumPy knows no bfloat16.
        return {name: (v.float() if v.dtype == torch.bfloat16 else v).numpy() for name, v in found.items()}

    return run


def build_for(one: Exporter, model: LayeredModel, onnx: bytes, validation: Arrays | None, out: Path) -> Build:
    """The exporter's build in `out`, proven on real inputs where there are any. `onnx` is the same model."""
    return _built(one, model, onnx, validation, out)[0]


def _built(
    one: Exporter, model: LayeredModel, onnx: bytes, validation: Arrays | None, out: Path
) -> tuple[Build, Session]:
    """The build, and the session that it was proven with."""
    quantized = bool(numbers_of(onnx))
    content = one.export_quantized(onnx, model) if quantized else one.export(model, onnx)
    first = OnnxSession(onnx)
    session = one.session(content, first.input_names, [tensor.name for tensor in model.outputs])
    if quantized:
        difference = _hold_to(model, first, session, validation, one.title)
    else:
        difference = prove_session(model, session, validation, one.title)
    path = out / one.file
    path.write_bytes(content)
    build = Build(
        file=path.name,
        runtime=one.runtime,
        format=one.format,
        size_bytes=len(content),
        sha256=sha256_file(path),
        inputs=model.inputs,
        outputs=model.outputs,
        largest_difference=difference,
    )
    return build, session


def _hold_to(model: LayeredModel, first: OnnxSession, session: Session, validation: Arrays | None, title: str) -> float:
    """The largest difference of a quantized build from the float model. Raises InvalidModel where it errs far more than `first`.

    `first` is what was quantized, and judged against the float model, before: a dialect may be coarser, and no other function.
    """
    samples = first_samples(model.inputs, validation, None if model.dynamic_batch else model.sample_batch())
    if validation is not None and model.dynamic_batch:
        samples = validation.head(_HELD).inputs
    expected = layered_outputs(model)(samples)
    found = session.run({name: samples[name] for name in session.input_names})
    before = max(output_errors(expected, first.run({name: samples[name] for name in first.input_names})).values())
    error = max(output_errors(expected, found).values())
    if not error <= _TIMES * before + _FARTHER:
        raise InvalidModel(
            f"quantized for {title} the outputs err by {error:.3g} of their variation, against {before:.3g} for ONNX Runtime; "
            "keep more in floats (keep_float), or use calibration: percentile"
        )
    return max(float(np.abs(expected[name].astype(np.float64) - found[name]).max(initial=0.0)) for name in expected)
