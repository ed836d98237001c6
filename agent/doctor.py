"""`fleetfit agent doctor`: what this device has, what it lacks, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleetfit.agent.__main__ import probe_device
from fleetfit.agent.disk import give_temporary_folder
from fleetfit.agent.identity import load_identity
from fleetfit.core.errors import FleetfitError
from fleetfit.proto.trust import fetch_ca, public_key_digest
from fleetfit.proto.v1 import snapshot_pb2

_WANTED_FREE_BYTES = 512 << 20
# Boards that are sold with 512 MiB report less: firmware and kernel keep some.
_WANTED_MEMORY_BYTES = 800 << 20
# What adjtimex answers where the clock is not synchronised. Source: adjtimex(2).
_TIME_ERROR = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `ok`, `note` or `missing`, and what to do."""

    what: str
    verdict: str
    found: str
    advice: str = ""


def examine(state: Path) -> list[Finding]:
    """Look at everything that measuring needs. Never raises for what it finds."""
    findings = [*_connection(state), *_clock()]
    # Where the agent itself writes, or will: there may be no other place.
    own = _nearest(state)
    try:
        with tempfile.TemporaryDirectory(dir=own if os.access(own, os.W_OK) else None) as folder:
            give_temporary_folder(Path(folder) / "tmp")
            snapshot = asyncio.run(probe_device(Path(folder), threads=0, emulated=False))
    except FleetfitError as error:
        return [
            *findings,
            Finding("device", "missing", error.message, "Install fleetfit again in this environment."),
        ]
    except OSError as error:
        found = f"no folder takes a file ({error.strerror or error})"
        return [*findings, Finding("disk", "missing", found, "Name a folder that can be written with --state.")]
    return [*findings, *examine_device(state, snapshot)]


def examine_device(state: Path, snapshot: snapshot_pb2.DeviceSnapshot) -> list[Finding]:
    """Look at the device itself, as it was probed, whatever server there is or not."""
    findings = _runtimes(snapshot)
    if snapshot.emulated:
        advice = "Its timings mean nothing, and nothing is chosen for it unless a job says --accept-emulated."
        findings.append(Finding("emulated", "note", snapshot.emulated_because, advice))
    findings.append(_disk(state))
    findings += _memory(snapshot)
    findings.append(_quiet(snapshot))
    findings.append(
        Finding("energy", "ok", snapshot.energy)
        if snapshot.energy
        else Finding("energy", "note", snapshot.no_energy_because or "no meter", "All but energy is measured.")
    )
    if "thermal" not in snapshot.meters:
        findings.append(Finding("temperature", "note", "no thermal sensor can be read", "Throttling cannot be seen."))
    if snapshot.power_mode not in ("", "performance") and not snapshot.power_mode.startswith("MAXN"):
        advice = "Figures are taken under it and compared only within it; set another mode for steadier ones."
        findings.append(Finding("power mode", "note", snapshot.power_mode, advice))
    return findings


def _connection(state: Path) -> list[Finding]:
    try:
        identity = load_identity(state)
    except FleetfitError as error:
        return [Finding("identity", "missing", error.message)]
    if identity is None:
        return [
            Finding("identity", "missing", f"none in {state}", "Paste the line that `fleetfit devices enroll` prints.")
        ]
    try:
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
        ca = x509.load_pem_x509_certificate(identity.ca_pem)
    except ValueError as error:
        advice = "Remove it and enrol again with a new token."
        return [
            Finding("identity", "missing", f"the certificates in {state / 'identity'} are damaged ({error})", advice)
        ]
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    findings = [
        Finding("identity", "ok", f"{identity.name}, valid for {left.days} days")
        if left.total_seconds() > 0
        else Finding("identity", "missing", "the certificate has run out (or the clock is wrong)", "Enrol again.")
    ]
    now_begins = certificate.not_valid_before_utc - datetime.datetime.now(datetime.timezone.utc)
    if now_begins.total_seconds() > 0:
        findings.append(Finding("clock", "missing", "it is before the certificate's begin", "Set this device's clock."))
    try:
        fetch_ca(identity.agent_address, public_key_digest(_der(ca)), timeout_s=5)
        findings.append(Finding("server", "ok", f"{identity.agent_address} answers, with the right CA"))
    except FleetfitError as error:
        findings.append(Finding("server", "missing", error.message, "Check the network, and that the server runs."))
    return findings


def _clock() -> list[Finding]:
    synchronised = clock_is_synchronised()
    if synchronised is None:
        return []
    if synchronised:
        return [Finding("clock", "ok", "kept by a time service")]
    advice = "Start one (`sudo timedatectl set-ntp true`): a wrong clock makes certificates invalid."
    return [Finding("clock", "note", "no time service keeps it", advice)]


def clock_is_synchronised() -> bool | None:
    """Whether the kernel says that something keeps its clock right (adjtimex(2)); None where it does not say."""
    with contextlib.suppress(OSError, AttributeError):
        # Larger than the structure on any architecture; all zero, it asks and changes nothing.
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(1024))
        return None if state < 0 else state != _TIME_ERROR
    return None


def _memory(snapshot: snapshot_pb2.DeviceSnapshot) -> list[Finding]:
    if not snapshot.memory_bytes:
        return []
    text = f"{snapshot.memory_bytes / 1e6:.0f} MB"
    if snapshot.memory_bytes >= _WANTED_MEMORY_BYTES:
        return [Finding("memory", "ok", text)]
    return [Finding("memory", "note", text, "Only small models fit; a build that does not is called out_of_memory.")]


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _runtimes(snapshot: snapshot_pb2.DeviceSnapshot) -> list[Finding]:
    findings = [
        Finding("runtime", "ok", f"{runtime.name} {runtime.version} ({', '.join(runtime.providers)})")
        if runtime.available
        else Finding("runtime", "note", f"{runtime.name}: {runtime.reason}")
        for runtime in snapshot.runtimes
    ]
    if not any(runtime.available for runtime in snapshot.runtimes):
        advice = (
            "Where the server's installer made this: `fleetfit server wheels fetch` there, then paste a new line of `fleetfit "
            'devices enroll` here. In an environment of your own: pip install "fleetfit[onnxruntime]"'
        )
        findings.append(Finding("runtime", "missing", "no inference runtime can be used", advice))
    return findings


def _nearest(folder: Path) -> Path:
    """The folder, or what is there of the way to it."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _disk(state: Path) -> Finding:
    folder = _nearest(state)
    if not os.access(folder, os.W_OK):
        return Finding("disk", "missing", f"{folder} cannot be written", "Name another folder with --state.")
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    return (
        Finding("disk", "ok", text)
        if free >= _WANTED_FREE_BYTES
        else Finding("disk", "missing", text, "Make room, or name a larger disk with --state.")
    )


def _quiet(snapshot: snapshot_pb2.DeviceSnapshot) -> Finding:
    load = os.getloadavg()[0]
    cores = max(snapshot.processor.usable_cores, 1)
    text = f"load {load:.2f} on {cores} cores"
    if load < 0.3 * cores:
        return Finding("quiet", "ok", text)
    return Finding("quiet", "note", text, "Others use this device now; measurements taken so are marked.")


def show(findings: list[Finding], as_json: bool) -> None:
    """Print findings as a table of at most 80 columns, or as JSON."""
    if as_json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    marks = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "missing": "[red]missing[/red]"}
    for finding in findings:
        # As it is: rich would take the extra of `pip install "fleetfit[onnxruntime]"` for markup, and leave it out.
        table.add_row(marks[finding.verdict], finding.what, Text(finding.found), Text(finding.advice))
    Console().print(table)
