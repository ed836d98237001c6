from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleetfit import cli
from fleetfit.agent import disk, doctor
from fleetfit.agent.doctor import Finding, clock_is_synchronised, examine, show
from fleetfit.agent.identity import Identity, save_identity
from fleetfit.core.errors import UnsupportedHere
from fleetfit.proto.v1 import snapshot_pb2

from .desk import Desk

RUNTIME = snapshot_pb2.Runtime(name="onnxruntime", version="1.32", available=True, providers=["CPU"])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> snapshot_pb2.DeviceSnapshot:
    """What the probe finds, in place of this machine: a device without fault, for a test to change."""
    snapshot = snapshot_pb2.DeviceSnapshot(
        runtimes=[RUNTIME], meters=["thermal"], power_mode="performance", energy="module input (VDD_IN)"
    )
    snapshot.processor.usable_cores = 4

    async def probe(state: Path, *, threads: int, emulated: bool) -> snapshot_pb2.DeviceSnapshot:
        return snapshot

    monkeypatch.setattr(doctor, "probe_device", probe)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    monkeypatch.setattr(doctor, "clock_is_synchronised", lambda: None)
    return snapshot


def found(state: Path, what: str) -> Finding:
    """The one finding of that name."""
    (finding,) = (finding for finding in examine(state) if finding.what == what)
    return finding


def test_an_emulated_device_is_told_so(tmp_path: Path, device: snapshot_pb2.DeviceSnapshot) -> None:
    assert not [finding for finding in examine(tmp_path) if finding.what == "emulated"]
    device.emulated, device.emulated_because = True, "QEMU_CPU is set"
    finding = found(tmp_path, "emulated")
    assert (finding.verdict, finding.found) == ("note", "QEMU_CPU is set") and "--accept-emulated" in finding.advice


@pytest.mark.usefixtures("device")
def test_the_device_is_looked_at_where_the_agent_will_write_if_there_is_no_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in disk._TOLD})
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    monkeypatch.setattr(disk, "_USUAL", ())
    seen: list[Path] = []

    async def probe(state: Path, *, threads: int, emulated: bool) -> snapshot_pb2.DeviceSnapshot:
        assert Path(os.environ["TMPDIR"]).is_dir()
        seen.extend((state, Path(os.environ["TMPDIR"])))
        return snapshot_pb2.DeviceSnapshot(runtimes=[RUNTIME])

    monkeypatch.setattr(doctor, "probe_device", probe)
    examine(tmp_path / "agent" / "state")
    assert len(seen) == 2 and all(tmp_path in path.parents for path in seen)
    assert not any(tmp_path.iterdir())


def enrolled(folder: Path, change: Callable[[Identity], Identity] = lambda identity: identity, *, up: bool) -> Any:
    """The verdict on a device that enrolled at a server which is up, or was."""

    async def run() -> dict[str, Finding]:
        desk = Desk(folder / "desk")
        await desk.open()
        save_identity(folder / "state", change(desk.enrol()))
        if not up:
            await desk.shut()
        try:
            return {finding.what: finding for finding in await asyncio.to_thread(examine, folder / "state")}
        finally:
            await desk.shut()

    return asyncio.run(run())


@pytest.mark.usefixtures("device")
def test_a_device_that_lacks_nothing(tmp_path: Path) -> None:
    findings = enrolled(tmp_path, up=True)
    assert list(findings) == ["identity", "server", "runtime", "disk", "quiet", "energy"]
    assert {finding.verdict for finding in findings.values()} == {"ok"}
    assert findings["identity"].found.startswith("bench, valid for 18")
    assert findings["server"].found.endswith("answers, with the right CA")
    assert findings["runtime"].found == "onnxruntime 1.32 (CPU)"


def test_a_device_without_a_meter_of_energy_is_told_why(tmp_path: Path, device: snapshot_pb2.DeviceSnapshot) -> None:
    device.energy, device.no_energy_because = "", "the counters are for root only"
    finding = found(tmp_path, "energy")
    assert (finding.verdict, finding.found) == ("note", "the counters are for root only")


@pytest.mark.usefixtures("device")
def test_a_server_that_does_not_answer_is_missing(tmp_path: Path) -> None:
    server = enrolled(tmp_path, up=False)["server"]
    assert server.verdict == "missing"
    assert "cannot be reached" in server.found and "Check the network" in server.advice


@pytest.mark.usefixtures("device")
def test_a_server_of_another_fleet_is_missing(tmp_path: Path) -> None:
    other = Desk(tmp_path / "other").authority.pem
    server = enrolled(tmp_path, lambda identity: dataclasses.replace(identity, ca_pem=other), up=True)["server"]
    assert server.verdict == "missing" and "its CA has another key" in server.found


@pytest.mark.parametrize(
    ("begins", "ends", "what", "words"),
    [(-20, -10, "identity", "has run out"), (10, 20, "clock", "before the certificate's begin")],
)
@pytest.mark.usefixtures("device")
def test_a_certificate_out_of_its_time_is_missing(
    tmp_path: Path, begins: int, ends: int, what: str, words: str
) -> None:
    def change(identity: Identity) -> Identity:
        return dataclasses.replace(identity, certificate_pem=_certificate(begins, ends))

    finding = enrolled(tmp_path, change, up=True)[what]
    assert finding.verdict == "missing" and words in finding.found


def _certificate(begins_days: int, ends_days: int) -> bytes:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now + datetime.timedelta(days=begins_days))
    builder = builder.not_valid_after(now + datetime.timedelta(days=ends_days))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("damage", ["certificate_pem", "ca_pem"])
@pytest.mark.usefixtures("device")
def test_a_damaged_certificate_is_a_finding(tmp_path: Path, damage: str) -> None:
    findings = enrolled(tmp_path, lambda identity: dataclasses.replace(identity, **{damage: b"half"}), up=False)
    assert findings["identity"].verdict == "missing" and "are damaged" in findings["identity"].found
    assert "enrol again" in findings["identity"].advice


@pytest.mark.usefixtures("device")
def test_a_device_without_identity_is_told_how_to_get_one(tmp_path: Path) -> None:
    identity = found(tmp_path / "none", "identity")
    assert identity.verdict == "missing" and "fleetfit devices enroll" in identity.advice
    (tmp_path / "half" / "identity").mkdir(parents=True)
    assert "damaged" in found(tmp_path / "half", "identity").found


def test_a_device_that_cannot_be_probed_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(*_: Any, **__: Any) -> snapshot_pb2.DeviceSnapshot:
        raise UnsupportedHere("this device cannot be probed (crashed)")

    monkeypatch.setattr(doctor, "probe_device", probe)
    device = found(tmp_path, "device")
    assert (device.verdict, device.found) == ("missing", "this device cannot be probed (crashed)")


def test_a_runtime_that_is_missing_is_a_note_and_none_at_all_is_missing(
    tmp_path: Path, device: snapshot_pb2.DeviceSnapshot
) -> None:
    device.runtimes.add(name="ncnn", available=False, reason="pip install ncnn")
    notes = [finding for finding in examine(tmp_path) if finding.what == "runtime"]
    assert [(note.verdict, note.found) for note in notes[1:]] == [("note", "ncnn: pip install ncnn")]
    device.runtimes.pop(0)
    last = [finding for finding in examine(tmp_path) if finding.what == "runtime"][-1]
    assert last.verdict == "missing" and last.advice.endswith('pip install "fleetfit[onnxruntime]"')


@pytest.mark.parametrize(("free", "verdict"), [(512 << 20, "ok"), ((512 << 20) - 1, "missing"), (0, "missing")])
@pytest.mark.usefixtures("device")
def test_a_disk_has_room_or_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert found(tmp_path / "not" / "yet" / "there", "disk").verdict == verdict


@pytest.mark.usefixtures("device")
def test_a_folder_that_cannot_be_written_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    disk = found(tmp_path, "disk")
    assert disk.verdict == "missing" and f"{tmp_path} cannot be written" in disk.found


@pytest.mark.parametrize(("synchronised", "verdicts"), [(None, []), (True, ["ok"]), (False, ["note"])])
@pytest.mark.usefixtures("device")
def test_a_clock_that_nothing_keeps_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synchronised: bool | None, verdicts: list[str]
) -> None:
    monkeypatch.setattr(doctor, "clock_is_synchronised", lambda: synchronised)
    assert [finding.verdict for finding in examine(tmp_path) if finding.what == "clock"] == verdicts


def test_the_kernel_says_whether_its_clock_is_kept() -> None:
    assert clock_is_synchronised() in (True, False, None)


@pytest.mark.parametrize(("megabytes", "verdict"), [(4000, "ok"), (427, "note")])
def test_little_memory_is_a_note(
    tmp_path: Path, device: snapshot_pb2.DeviceSnapshot, megabytes: int, verdict: str
) -> None:
    device.memory_bytes = megabytes * 10**6
    assert found(tmp_path, "memory").verdict == verdict


@pytest.mark.parametrize(("load", "verdict"), [(1.19, "ok"), (1.2, "note"), (9.0, "note")])
@pytest.mark.usefixtures("device")
def test_others_at_work_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float, verdict: str) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert found(tmp_path, "quiet").verdict == verdict


@pytest.mark.parametrize(
    ("mode", "noted"), [("", False), ("performance", False), ("MAXN_SUPER", False), ("15W", True), ("ondemand", True)]
)
def test_a_power_mode_that_saves_power_is_a_note(
    tmp_path: Path, device: snapshot_pb2.DeviceSnapshot, mode: str, noted: bool
) -> None:
    device.power_mode = mode
    del device.meters[:]
    notes = {finding.what: finding.found for finding in examine(tmp_path) if finding.verdict == "note"}
    assert notes.get("power mode", "") == (mode if noted else "")
    assert notes["temperature"] == "no thermal sensor can be read"


def test_this_machine_can_be_examined(tmp_path: Path) -> None:
    """With the real probe."""
    found = examine(tmp_path)
    findings = {finding.what: finding for finding in found}
    assert [finding.verdict for finding in found if finding.found.startswith("onnxruntime ")] == ["ok"]
    assert {"identity", "disk", "quiet"} <= set(findings)


FINDINGS = [Finding("disk", "ok", "9.0 GB free"), Finding("server", "note", "x " * 90, "Check [this] " * 20)]


def test_findings_fit_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(FINDINGS, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "9.0 GB free" in "\n".join(lines) and "[this]" in "\n".join(lines)


def test_findings_are_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    show(FINDINGS, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["findings"][0] == {"what": "disk", "verdict": "ok", "found": "9.0 GB free", "advice": ""}


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("note", 0), ("missing", 1)])
def test_the_exit_code_says_whether_something_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verdict: str,
    code: int,
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(doctor, "examine", lambda state: asked.append(state) or [Finding("x", verdict, "y")])
    assert cli.run(["agent", "--state", str(tmp_path), "doctor", "--json"]) == code
    assert asked == [tmp_path]
    assert json.loads(capsys.readouterr().out)["findings"][0]["verdict"] == verdict
