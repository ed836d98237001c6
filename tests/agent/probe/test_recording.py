from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fleetfit import cli
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.readings import Readings
from fleetfit.agent.probe.recording import record, without_secrets
from fleetfit.agent.probe.snapshot import take_snapshot
from fleetfit.core.errors import InvalidInput

from .trees import CONTAINER_V2, JETSON_ORIN_NANO, RASPBERRY_PI_4, plant


@pytest.mark.parametrize("board", [RASPBERRY_PI_4, JETSON_ORIN_NANO, CONTAINER_V2])
def test_a_record_is_read_as_its_board_was(tmp_path: Path, board: Mapping[str, str]) -> None:
    plant(tmp_path / "board", board)
    assert record(tmp_path / "record", tmp_path / "board") > 5
    before, after = (take_snapshot(Tree(tmp_path / name)) for name in ("board", "record"))
    # Made from the machine id, which is not kept.
    assert (before.host_digest != after.host_digest) == ("/etc/machine-id" in board)
    for each in (before, after):
        each.ClearField("host_digest")
        each.ClearField("disk_free_bytes")
    assert before == after and before.machine == board["/fleetfit/machine"]
    first, second = (Readings(Tree(tmp_path / name)).take() for name in ("board", "record"))
    for reading in (first, second):
        for field in ("monotonic_ns", "other_cpu_percent", "steal_percent"):
            reading.ClearField(field)
    assert first == second


def test_what_names_this_very_board_is_not_recorded(tmp_path: Path) -> None:
    plant(tmp_path / "board", RASPBERRY_PI_4)
    record(tmp_path / "record", tmp_path / "board")
    content = b"".join(path.read_bytes() for path in (tmp_path / "record").rglob("*") if path.is_file())
    for secret in (
        "deadbeef",
        RASPBERRY_PI_4["/etc/machine-id"].strip(),
        RASPBERRY_PI_4["/proc/sys/kernel/random/boot_id"][:8],
    ):
        assert secret.encode() not in content
    assert b"Raspberry Pi 4 Model B" in content


@pytest.mark.parametrize(
    ("path", "content", "recorded"),
    [
        ("/sys/devices/virtual/dmi/id/board_asset_tag", b"i-0a1b2c3d4e5f60718\n", b"0-00000000000000000\n"),
        ("/proc/device-tree/serial-number", b"10000000abcdef01\0", b"0000000000000000\0"),
        ("/proc/cpuinfo", b"Model : x\nSerial\t\t: 00ab\n", b"Model : x\nSerial\t\t: 0000000000000000\n"),
        ("/proc/cmdline", b"eth=dc:a6:32:01:02:03 a", b"eth=00:00:00:00:00:00 a"),
        ("/etc/x", b"on garden-cam-7.lan", b"on host.lan"),
        ("/proc/stat", b"cpu 1 2 3\n", b"cpu 1 2 3\n"),
    ],
)
def test_secrets_are_replaced_by_what_looks_like_them(path: str, content: bytes, recorded: bytes) -> None:
    assert without_secrets(path, content, "garden-cam-7") == recorded
    assert without_secrets("/x", b"raspberrypi", "pi") == b"raspberrypi"


def test_this_machine_is_recorded_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "record"
    assert cli.run(["agent", "--state", str(tmp_path / "state"), "doctor", "--record", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] > 5 and (folder / "proc" / "cpuinfo").stat().st_size > 0
    facts = json.loads((folder / "fleetfit" / "recorded.json").read_text())
    assert "onnxruntime" in facts["runtimes"] and facts["kernel"] == os.uname().release
    with pytest.raises(InvalidInput, match="is not empty"):
        record(folder)
