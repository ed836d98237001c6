"""Builds that are well packed, and lie about what is in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes import ncnn, openvino
from fleetfit.runtimes.archive import pack, unpack
from fleetfit.runtimes.registry import runtimes
from fleetfit.runtimes.samples import WEIGHTS, as_openvino, ncnn_affine, ncnn_build

from .builds import affine, external


def available(adapter: ncnn.Ncnn | openvino.OpenVino) -> None:
    availability = adapter.availability()
    if not availability.available:
        pytest.skip(availability.reason)


def test_both_are_installed_like_any_other() -> None:
    found = runtimes()
    assert isinstance(found["ncnn"], ncnn.Ncnn) and isinstance(found["openvino"], openvino.OpenVino)


class TestOpenVino:
    def test_a_format_that_may_reach_other_files_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        available(openvino.OpenVino())
        (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
        monkeypatch.chdir(tmp_path)
        build = pack({"model.xml": external("weights.bin"), "model.bin": b""})
        with pytest.raises(InvalidModel, match="not OpenVINO's intermediate representation"):
            openvino.OpenVino().load(build, threads=1)

    def test_weights_that_are_missing_are_a_clear_error(self) -> None:
        available(openvino.OpenVino())
        members = unpack(as_openvino(affine()), openvino.MEMBERS)
        members["model.bin"] = members["model.bin"][:-8]
        with pytest.raises(InvalidModel, match="cannot load the build: Incorrect weights"):
            openvino.OpenVino().load(pack(members), threads=1)


class TestNcnn:
    @pytest.mark.parametrize(
        "ports",
        [
            b"",
            b"[]",
            b"{}",
            b'{"inputs": [], "outputs": []}',
            b'{"inputs": [{"blob": "in0"}], "outputs": []}',
            b"[" * 100_000,
        ],
    )
    def test_ports_that_are_none_are_refused(self, ports: bytes) -> None:
        available(ncnn.Ncnn())
        members = unpack(ncnn_affine(), ncnn.MEMBERS)
        with pytest.raises(InvalidModel, match=r"ports.json does not list|two to five dimensions"):
            ncnn.Ncnn().load(pack({**members, "ports.json": ports}), threads=1)

    @pytest.mark.parametrize("blob", ["in1", "product", "out0"])
    def test_ports_of_another_network_are_refused(self, blob: str) -> None:
        available(ncnn.Ncnn())
        members = unpack(ncnn_affine(), ncnn.MEMBERS)
        ports = json.loads(members["ports.json"])
        ports["inputs"][0]["blob"] = blob
        with pytest.raises(InvalidModel, match="does not name the inputs and outputs"):
            ncnn.Ncnn().load(pack({**members, "ports.json": json.dumps(ports).encode()}), threads=1)

    def test_weights_that_are_missing_are_a_clear_error(self) -> None:
        available(ncnn.Ncnn())
        members = unpack(ncnn_affine(), ncnn.MEMBERS)
        with pytest.raises(InvalidModel, match="cannot load the build; build it again"):
            ncnn.Ncnn().load(pack({**members, "model.bin": members["model.bin"][:-8]}), threads=1)

    def test_an_operator_that_ncnn_lacks_is_a_clear_error(self) -> None:
        available(ncnn.Ncnn())
        build = ncnn_build(["Input in 0 1 in0", "Abacus count 1 1 in0 out0"], 2, b"", {"scores": 4})
        with pytest.raises(InvalidModel, match="cannot load the build"):
            ncnn.Ncnn().load(build, threads=1)


def test_openvino_reports_to_nobody() -> None:
    """Its own import sends an event to its makers, from a thread that stays."""
    available(openvino.OpenVino())
    code = (
        "import sys, threading; from fleetfit.runtimes.openvino import OpenVino; found = OpenVino().availability();"
        "print(found.available, threading.active_count(), sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "1", "None"], done.stderr
