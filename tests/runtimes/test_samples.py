"""What lies in runtimes/samples/, and that its checks see what is broken."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.base import Arrays, LoadedModel, Runtime, ignore_progress
from fleetfit.runtimes.contract import CHECKS, ContractBroken
from fleetfit.runtimes.onnxruntime import OnnxRuntime
from fleetfit.runtimes.operators import NoProfile, Profile
from fleetfit.runtimes.samples import FOLDER, NETWORK_OUTPUT, SAMPLES, network_inputs

from .builds import FILES, network_outputs


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_what_the_tests_make(name: str) -> None:
    made, there = FILES[name](), (FOLDER / name).read_bytes()
    if name == "network.json":
        np.testing.assert_allclose(json.loads(made), json.loads(there), atol=1e-6)
    else:
        assert made == there, "run `python -m tests.runtimes.builds`"


def test_the_networks_outputs_differ_between_samples() -> None:
    """Else a runtime that gives the same for every input would pass."""
    found = network_outputs(network_inputs(4))
    np.testing.assert_allclose(found, NETWORK_OUTPUT, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.01


class _Broken(OnnxRuntime):
    """ONNX Runtime with one thing done wrong."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def load(self, build: bytes, *, threads: int) -> LoadedModel:
        if self._fault == "takes anything" and not build:
            return _Wrapped(super().load(SAMPLES["onnx"].good(), threads=threads), "")
        if self._fault == "says too little":
            try:
                return super().load(build, threads=threads)
            except InvalidModel as error:
                raise InvalidModel("no") from error
        return _Wrapped(super().load(build, threads=threads), self._fault)

    def profile(self, build: bytes, feeds: Arrays, *, threads: int, progress: Any = ignore_progress) -> Any:
        if self._fault == "no reason":
            return NoProfile("no")
        found = super().profile(build, feeds, threads=threads, progress=progress)
        assert isinstance(found, Profile)
        if self._fault == "counts twice":
            return dataclasses.replace(
                found, operators=tuple(dataclasses.replace(one, ns=2 * one.ns) for one in found.operators)
            )
        return dataclasses.replace(found, operators=()) if self._fault == "no operators" else found


class _Wrapped(LoadedModel):
    def __init__(self, model: LoadedModel, fault: str) -> None:
        self._model, self._fault, self._kept = model, fault, []  # type: ignore[var-annotated]

    def run(self, feeds: Arrays) -> dict[str, Any]:
        outputs = self._model.run(feeds)
        if self._fault == "a percent off":
            outputs = {name: values * 1.01 for name, values in outputs.items()}
        if self._fault == "other names":
            outputs = {f"{name}_0": values for name, values in outputs.items()}
        if self._fault == "writes":
            feeds["x"][:] = 0
        return outputs

    def bind(self, feeds: Arrays) -> Callable[[], None]:
        if self._fault == "keeps":
            self._kept.append(feeds)
        return self._model.bind(feeds)

    def close(self) -> None:
        if self._fault == "closes once":
            assert self._model is not None
            self._model.close()
            self._model = None  # type: ignore[assignment]
        else:
            self._model.close()


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("a percent off", "outputs come by name with the batch first"),
        ("a percent off", "a network computes what it computes elsewhere"),
        ("other names", "outputs come by name with the batch first"),
        ("writes", "inputs are not written to"),
        ("keeps", "a bound call keeps its inputs alive"),
        ("takes anything", "bytes that are no build are refused in a sentence"),
        ("says too little", "bytes that are no build are refused in a sentence"),
        ("closes once", "closing twice is closing once"),
        ("no reason", "its operators are timed or it says why not"),
        ("no operators", "its operators are timed or it says why not"),
        ("counts twice", "its operators are timed or it says why not"),
    ],
)
def test_a_check_sees_what_is_broken(fault: str, check: str) -> None:
    adapter: Runtime = _Broken(fault)
    CHECKS[check](OnnxRuntime(), SAMPLES["onnx"])
    with pytest.raises((ContractBroken, AssertionError)):
        CHECKS[check](adapter, SAMPLES["onnx"])


def test_every_check_is_told_in_a_line(tmp_path: Any) -> None:
    command = [sys.executable, "-m", "fleetfit.runtimes.contract", "ncnn"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [[title, ""] for title in CHECKS]
