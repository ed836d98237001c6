"""A self-proof of this machine: whole, and without what names it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fleetfit.agent.selfproof.making import Maker
from fleetfit.agent.selfproof.privacy import Privacy
from fleetfit.core.errors import NotFound
from fleetfit.core.package import code_digest
from fleetfit.proto.selfproof import SelfProof, differences, unproven, unseal
from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2
from fleetfit.runtimes.contract import CHECKS

from ..probe.trees import BOOT_ID

_CRASHING = """
import os
from fleetfit.runtimes.base import Availability, LoadedModel, Runtime
class Crashing(Runtime):
    name, formats = "crashing", ("onnx",)
    def availability(self): return Availability(True, "", "1.0", ("CPU",))
    def load(self, build, *, threads):
        if len(build) == 0: os.abort()
        raise ValueError("not today, " + os.path.expanduser("~/models"))
"""


@pytest.fixture
def another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whose name and home folder are such that nothing else holds them."""
    home = tmp_path / "gwendolyn-home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "gwendolyn")
    return home


def made(folder: Path, names: list[str]) -> tuple[SelfProof, bytes]:
    told: list[tuple[str, float]] = []
    work = folder / "work"
    work.mkdir()
    maker = Maker(work, threads=1, emulated=True, method="quick", tell=lambda *one: told.append(one))
    content = asyncio.run(maker.make(names))
    assert [done for _, done in told] == sorted(done for _, done in told) and told[-1][1] >= 0.5
    return unseal(content), content


@pytest.mark.timeout(300)
def test_this_machine(tmp_path: Path, another_user: Path) -> None:
    found, content = made(tmp_path, ["onnxruntime"])
    statement = found.statement
    assert differences(found) == [] and unproven(found)["onnxruntime"] == ""
    checked = {one.name: one for one in statement.runtimes}
    assert checked["onnxruntime"].contract == dict.fromkeys(CHECKS, "")
    assert checked["onnxruntime"].figures is not None and checked["onnxruntime"].figures["p50_ms"]["value"] > 0
    assert len(found.raw["onnxruntime"].pairs) >= 4 and found.raw["onnxruntime"].readings
    # Others are there, and it says why nothing is said of them.
    assert checked["openvino"].reason in ("it was left out by --runtime", "") or not checked["openvino"].available
    assert (statement.emulated, statement.threads, statement.method) == (True, 1, "quick")
    assert statement.code.files == code_digest() and statement.condition["kernel"] == os.uname().release
    assert {one["what"] for one in statement.findings} >= {"runtime", "disk", "memory", "quiet"}
    assert not {"identity", "server"} & {one["what"] for one in statement.findings}

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        everything = b"".join(archive.read(name) for name in archive.namelist())
    everything += b"".join(raw.SerializeToString() for raw in found.raw.values())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert not found.snapshot.host_name and not found.snapshot.host_digest
    for named in (socket.gethostname(), "gwendolyn", boot):
        assert len(named) < 4 or named.encode() not in everything, named
    assert not found.raw["onnxruntime"].host_digest and "boot_id" not in found.raw["onnxruntime"].condition


@pytest.mark.timeout(300)
def test_a_runtime_that_crashes_is_told_of_and_named_no_folder(
    tmp_path: Path, another_user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "site" / "crashing-1.0.dist-info"
    facts.mkdir(parents=True)
    (tmp_path / "site" / "crashing_adapter.py").write_text(_CRASHING)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fleetfit.runtimes]\ncrashing = crashing_adapter:Crashing\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    found, content = made(tmp_path, ["crashing"])
    contract = next(one.contract for one in found.statement.runtimes if one.name == "crashing")
    titles = list(CHECKS)
    assert contract[titles[0]] == "it raised ValueError: not today, HOME/models"
    crashed = titles.index("bytes that are no build are refused in a sentence")
    assert contract[titles[crashed]].startswith("its process ended here as crashed")
    assert [contract[title] for title in titles[crashed + 1 :]] == ["not reached"] * (len(titles) - crashed - 1)
    assert unproven(found)["crashing"].startswith("it does not keep its contract")
    assert found.raw["crashing"].status != measurement_pb2.MEASUREMENT_STATUS_MEASURED
    assert "gwendolyn" not in json.dumps(found.statement.model_dump(mode="json"))
    assert b"gwendolyn" not in found.raw["crashing"].SerializeToString()


def test_without_any_runtime_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from fleetfit.agent.selfproof.__main__ import main; sys.exit(main(['made.zip']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert 'pip install "fleetfit[onnxruntime]"' in json.loads(ended.stdout)["refused"]
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no runtime 'onnx' here; there are .*onnxruntime"):
        made(tmp_path, ["onnx"])


PRIVACY = Privacy({"/home/gwendolyn": "HOME", "gwendolyn": "USER", "workbench": "HOST"})


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("cannot open /home/gwendolyn/m.onnx", "cannot open HOME/m.onnx"),
        ("gwendolyn@workbench may not", "USER@HOST may not"),
        ("eth0 is d8:3a:dd:01:02:Ff up", "eth0 is 00:00:00:00:00:00 up"),
        ("at 12:30:45 it was 41 C", "at 12:30:45 it was 41 C"),
    ],
)
def test_text_loses_names(said: str, kept: str) -> None:
    assert PRIVACY.text(said) == kept


def test_a_snapshot_loses_which_device_it_is_and_keeps_what_it_is() -> None:
    snapshot = snapshot_pb2.DeviceSnapshot(
        machine="aarch64",
        host_name="workbench",
        host_digest="0" * 32,
        disk_free_bytes=1,
        device_tree_model="Raspberry Pi 4 Model B Rev 1.4",
        os=snapshot_pb2.OperatingSystem(kernel="6.1.0-gwendolyn"),
        runtimes=[snapshot_pb2.Runtime(name="ncnn", reason="/home/gwendolyn/ncnn is damaged")],
    )
    kept = PRIVACY.snapshot(snapshot)
    assert (kept.machine, kept.device_tree_model) == ("aarch64", "Raspberry Pi 4 Model B Rev 1.4")
    assert (kept.host_name, kept.host_digest, kept.os.kernel) == ("", "", "6.1.0-USER")
    assert not kept.HasField("disk_free_bytes") and kept.runtimes[0].reason == "HOME/ncnn is damaged"
    assert snapshot.host_name == "workbench"


def test_a_result_keeps_every_sample() -> None:
    result = measurement_pb2.MeasurementResult(boot_id=BOOT_ID, host_digest="1" * 32, message="workbench is full")
    result.solo.latency_ns.extend([1, 2, 3])
    result.readings.add(temperature_celsius=50)
    result.condition.update({"boot_id": BOOT_ID, "application": "beside gwendolyn", "governor": "ondemand"})
    result.notes.append("/home/gwendolyn was busy")
    kept = PRIVACY.result(result)
    assert kept.solo == result.solo and list(kept.readings) == list(result.readings)
    assert dict(kept.condition) == {"governor": "ondemand"}
    assert (kept.boot_id, kept.host_digest, kept.message) == ("", "", "HOST is full")
    assert list(kept.notes) == ["HOME was busy"]
