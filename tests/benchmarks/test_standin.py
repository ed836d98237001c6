"""The emulated board's making, as far as it needs no emulator; tests/system/test_standin.py runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import standin
from fleetfit.core.errors import UnsupportedHere


@pytest.mark.parametrize("missing", ["qemu-aarch64-static", "mmdebstrap"])
def test_a_missing_program_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == missing else f"/usr/bin/{program}")
    monkeypatch.setattr(standin, "_CACHE", tmp_path / "cache")
    with pytest.raises(UnsupportedHere, match=rf"no {missing} here.*make ci-deps"):
        standin.stand_in()
    assert not (tmp_path / "cache").exists()


def test_the_board_gets_what_an_agent_installs_and_two_runtimes(repository: Path) -> None:
    names = {Requirement(text).name for text in standin._requirements()}
    assert {"grpcio", "protobuf", "psutil", "cryptography", "numpy", *standin.RUNTIMES} <= names
    assert not {"torch", "onnx", "sqlalchemy", "pytest", "openvino", "pyyaml"} & names
    # What is not pinned would change with the day.
    pinned = {line.partition("==")[0].lower() for line in (repository / "constraints.txt").read_text().splitlines()}
    assert {name.lower() for name in names} <= pinned
