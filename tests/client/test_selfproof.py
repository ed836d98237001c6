"""`fleetfit selfproof`, and what it says of a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleetfit import cli
from fleetfit.client.commands import selfproof
from fleetfit.proto.selfproof import CheckedRuntime
from fleetfit.proto.v1 import snapshot_pb2

from ..proto.proofs import proof

PI = snapshot_pb2.DeviceSnapshot(
    machine="aarch64",
    device_tree_model="Raspberry Pi 4 Model B Rev 1.4",
    device_tree_compatible=["raspberrypi,4-model-b", "brcm,bcm2711"],
)


def verified(file: Path, capsys: pytest.CaptureFixture[str], *, code: int = 0) -> dict[str, Any]:
    assert cli.run(["selfproof", "--verify", str(file), "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.timeout(300)
def test_a_device_makes_a_file_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "fleetfit", "selfproof", "--quick", "--json", "--emulated", "--threads", "1"]
    ended = subprocess.run(
        [*command, "--runtime", "onnxruntime"], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["holds"] and said["code"]["is_this"] and said["emulated"] and "onnxruntime: " in ended.stderr
    (made,) = tmp_path.iterdir()
    assert made.name == said["file"] == f"selfproof-{said['profile']}-{said['made'][:10]}.zip"
    assert verified(made, capsys) == said | {"file": str(made)}
    found = {one["name"]: one for one in said["runtimes"]}
    assert found["onnxruntime"]["proven"] and found["onnxruntime"]["figures"]["p50_ms"]["value"] > 0


def test_a_file_is_matched_to_its_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sent.zip"
    file.write_bytes(proof(PI))
    found = verified(file, capsys)
    assert (found["profile"], found["holds"], found["differences"]) == ("raspberry-pi-4", True, [])
    assert "raspberrypi,4-model-b" in found["because"] and not found["code"]["is_this"]
    assert cli.run(["selfproof", "--verify", str(file)]) == 0
    text = capsys.readouterr().out
    assert "Raspberry Pi 4 Model B Rev 1.4\nprofile raspberry-pi-4: " in text
    assert "(other code than here)" in text and "ok  onnxruntime 1.23.2: 2 checks of its contract hold; p50 " in text
    # Integrity, not honesty.
    assert "It does not show who made it, or that what it says is true." in " ".join(text.split())


def test_what_does_not_hold_is_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sent.zip"
    broken = CheckedRuntime(name="onnxruntime", available=True, contract={"it runs": "it does not"})
    file.write_bytes(proof(PI, runtimes=[broken]))
    found = verified(file, capsys, code=1)
    assert found["runtimes"][0]["why_not"] == "it does not keep its contract: it runs (it does not)"
    # Its samples are there, and no figures beside them.
    assert found["differences"]
    file.write_bytes(proof(PI)[:-200])
    assert cli.run(["selfproof", "--verify", str(file), "--json"]) == 1
    assert "no self-proof" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_where_there_are_no_profiles_none_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device, whose wheel leaves them out."""
    monkeypatch.setattr(selfproof, "find_spec", lambda name: None)
    content = proof(PI)
    monkeypatch.setattr(selfproof, "_run", lambda command, told: Path(command[3]).write_bytes(content))
    monkeypatch.chdir(tmp_path)
    assert cli.run(["selfproof", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["profile"] is None and "where the server is" in found["because"]
    assert found["file"] == "selfproof-raspberry-pi-4-model-b-rev-1-4-2026-11-20.zip"
    assert (tmp_path / found["file"]).read_bytes() == content


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["selfproof", "--verify", "a.zip", "--threads", "2"]) == 2
    assert "--verify only reads a file" in capsys.readouterr().err
    assert cli.run(["selfproof", "-o", str(tmp_path / "no" / "a.zip")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert cli.run(["selfproof", "--runtime", "onnx", "-o", str(tmp_path / "a.zip")]) == 1
    assert "there is no runtime 'onnx' here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
