from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetfit.core.digests import sha256_file
from fleetfit.runtimes.registry import runtime
from fleetfit.server.golden import golden
from fleetfit.server.report.golden import what_is_wrong
from fleetfit.server.report.summary import MeasurementSummary

from .raw import raw_result

EXPECTED = np.asarray(golden().expected)


def outputs(folder: Path, values: NDArray[np.float64], name: str = "output") -> Path:
    path = folder / "outputs.npz"
    np.savez(path, **{name: values.astype(np.float32)})  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(("name", "kind"), [("onnxruntime", "onnx"), ("openvino", "openvino"), ("ncnn", "ncnn")])
def test_every_runtime_computes_the_golden_model_with_room_to_spare(tmp_path: Path, name: str, kind: str) -> None:
    adapter, model = runtime(name), golden()
    if not adapter.availability().available:
        pytest.skip(f"{name} is not installed")
    with np.load(model.samples) as samples:
        feeds = {model.input.name: samples[model.input.name]}
    loaded = adapter.load(model.files[kind].read_bytes(), threads=1)
    try:
        found = loaded.run(feeds)[model.output.name]
    finally:
        loaded.close()
    assert what_is_wrong(outputs(tmp_path, found), model) == ""
    assert np.abs(found - EXPECTED).max() < model.tolerance / 100


def test_the_files_are_those_that_are_described() -> None:
    model = golden()
    for path in (*model.files.values(), model.samples):
        assert sha256_file(path) == model.sha256[path.name]


def test_what_is_expected_is_what_the_script_computes() -> None:
    import torch

    from fleetfit.server.golden.make import golden_module

    with np.load(golden().samples) as samples, torch.no_grad():
        found = golden_module().double()(torch.from_numpy(samples["x"]).double())
    np.testing.assert_allclose(found.numpy(), EXPECTED, rtol=1e-6, atol=1e-7)


def test_one_wrong_number_is_wrong(tmp_path: Path) -> None:
    wrong = EXPECTED.copy()
    wrong[2, 3] += 2 * golden().tolerance
    said = what_is_wrong(outputs(tmp_path, wrong), golden())
    assert said.startswith("its outputs are wrong: 1 of 64 are off by more than 0.00553, the worst by 0.0111")
    wrong[2, 3] = np.nan
    assert what_is_wrong(outputs(tmp_path, wrong), golden()) == "1 of 64 of its outputs are not finite numbers"


def test_outputs_of_something_else_are_wrong_too(tmp_path: Path) -> None:
    assert "have the shape [3, 16]" in what_is_wrong(outputs(tmp_path, EXPECTED[:3]), golden())
    unreadable = "it returned no outputs that can be read"
    assert what_is_wrong(outputs(tmp_path, EXPECTED, "another"), golden()) == unreadable
    garbage = tmp_path / "garbage.npz"
    for content in (b"", b"PK\x03\x04 and nothing", b"\x80\x04 a pickle"):
        garbage.write_bytes(content)
        assert what_is_wrong(garbage, golden()) == unreadable


def test_the_child_sums_up_and_compares(tmp_path: Path) -> None:
    result, source, out = tmp_path / "result.pb.gz", tmp_path / "in.json", tmp_path / "out.json"
    result.write_bytes(gzip.compress(raw_result(ratio=1.0).SerializeToString()))
    for given, wrong in ((str(outputs(tmp_path, EXPECTED)), ""), (None, None)):
        source.write_text(json.dumps({"result": str(result), "outputs": given}))
        subprocess.run([sys.executable, "-m", "fleetfit.server.report.golden", source, out], check=True)
        answer = json.loads(out.read_text())
        assert answer["wrong"] == wrong
        summary = MeasurementSummary.model_validate(answer["summary"])
        assert summary.latency is not None and summary.latency.p50_ms.low is not None
