"""The file that `fleetfit selfproof` writes: a zip of what a device says of itself, its raw samples, and a signature.

    proof.json       the statement: versions, board, checks, figures, and the digest of every other member
    snapshot.pb      what the probe found (DeviceSnapshot), without what names this very device
    RUNTIME.pb.gz    the raw samples (MeasurementResult) of one runtime
    signature.json   an Ed25519 signature of proof.json's bytes, and the public key, whose private half is thrown away

The signature proves that nothing was changed since, not that what was said is true: whoever makes such a file can say anything.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import gzip
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError, Message
from pydantic import BaseModel, ConfigDict, ValidationError

from fleetfit.core.digests import sha256_bytes
from fleetfit.core.errors import IntegrityError, InvalidInput
from fleetfit.core.statistics_latency import median_interval, percentile_interval
from fleetfit.core.statistics_student import Interval
from fleetfit.core.ties import is_even
from fleetfit.proto.energy import energy_of_a_call
from fleetfit.proto.figures import bounds, candidate_samples, pair_ratio, peak_memory
from fleetfit.proto.printable import make_printable, printable
from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2

FORM: Final = 1
STATEMENT: Final = "proof.json"
SIGNATURE: Final = "signature.json"
SNAPSHOT: Final = "snapshot.pb"
_RAW: Final = ".pb.gz"
_MOST_BYTES: Final = 64 << 20
_MOST_MEMBERS: Final = 64
# The same samples give the same figures to the last digits, whatever the processor.
_RELATIVE: Final = 1e-9
Raw = measurement_pb2.MeasurementResult


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Code(_Part):
    """Which fleetfit it was. `files` is the digest of those that devices need, the same wherever the same code is installed."""

    version: str
    files: str
    wheel: str | None = None
    """The SHA-256 of the wheel, where it was installed from a file by name."""
    commit: str | None = None
    """Of a checkout; `-modified` behind it where files differ from that commit."""


class CheckedRuntime(_Part):
    """One runtime that fleetfit has an adapter for."""

    name: str
    available: bool
    version: str = ""
    providers: list[str] = []
    reason: str = ""
    """Why it is not available, or was not checked."""
    contract: dict[str, str] = {}
    """Every check by what it says, and what broke; empty where it held."""
    figures: dict[str, Any] | None = None
    message: str = ""
    """Why nothing was measured."""


class Statement(_Part):
    """What the device says of itself."""

    form: int = FORM
    made: datetime.datetime
    code: Code
    board: dict[str, Any]
    emulated: bool
    threads: int
    method: str
    condition: dict[str, str]
    findings: list[dict[str, str]]
    """What `fleetfit agent doctor` says of the board."""
    runtimes: list[CheckedRuntime]
    members: dict[str, str] = {}
    """The digest of every other file of the archive."""


@dataclass(frozen=True)
class SelfProof:
    """A file whose signature and digests hold. `fingerprint` is the SHA-256 of its public key."""

    statement: Statement
    snapshot: snapshot_pb2.DeviceSnapshot
    raw: Mapping[str, Raw]
    """By runtime."""
    fingerprint: str


def seal(statement: Statement, snapshot: snapshot_pb2.DeviceSnapshot, raw: Mapping[str, Raw]) -> bytes:
    """The file's content, signed with a key that is made for it and forgotten."""
    members = {SNAPSHOT: snapshot.SerializeToString(deterministic=True)}
    members |= {f"{name}{_RAW}": gzip.compress(one.SerializeToString(), mtime=0) for name, one in raw.items()}
    whole = statement.model_copy(update={"members": {name: sha256_bytes(one) for name, one in members.items()}})
    said = (json.dumps(whole.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()
    key = Ed25519PrivateKey.generate()
    public, signed = key.public_key().public_bytes_raw(), key.sign(said)
    signature = {"algorithm": "Ed25519", "of": STATEMENT, "public_key": _text(public), "signature": _text(signed)}
    members |= {STATEMENT: said, SIGNATURE: (json.dumps(signature, indent=1) + "\n").encode()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(members, key=lambda name: (name != STATEMENT, name)):
            archive.writestr(zipfile.ZipInfo(name), members[name], zipfile.ZIP_DEFLATED)
    return out.getvalue()


def unseal(content: bytes) -> SelfProof:
    """Take a file apart. Raises InvalidInput where it is no self-proof, IntegrityError where it was changed."""
    members = _members(content)
    if not {STATEMENT, SIGNATURE, SNAPSHOT} <= set(members):
        raise InvalidInput(f"this is no self-proof: {STATEMENT}, {SNAPSHOT} or {SIGNATURE} is not in it")
    public = _verified(members)
    statement = _statement(members[STATEMENT])
    others = {name: one for name, one in members.items() if name not in (STATEMENT, SIGNATURE)}
    if statement.members != {name: sha256_bytes(one) for name, one in others.items()}:
        raise IntegrityError(
            "a member of the self-proof is not what was signed: the file was changed; ask for it again"
        )
    snapshot = snapshot_pb2.DeviceSnapshot()
    _parse(snapshot, SNAPSHOT, members[SNAPSHOT])
    raw = {}
    for name, packed in others.items():
        if name.endswith(_RAW):
            result = raw[name.removesuffix(_RAW)] = Raw()
            _parse(result, name, _unpacked(name, packed))
    return SelfProof(statement, snapshot, raw, sha256_bytes(public))


def figures_of(raw: Raw) -> dict[str, Any]:
    """What the raw samples of one runtime carry; what they do not is null.

    `same_build` is the speed of the build beside itself: 1, if all is right.
    """
    processes = candidate_samples(raw)
    p95 = percentile_interval(95, processes) if processes else None
    ratio = pair_ratio(raw.pairs)
    energy = energy_of_a_call(raw.energy) if raw.HasField("energy") else None
    looks = [*raw.readings, *raw.during]
    heat = [look.temperature_celsius for look in looks if look.HasField("temperature_celsius")]
    return {
        "p50_ms": _figure(median_interval(processes)) if processes else None,
        "p95_ms": _figure(p95),
        "samples": sum(map(len, processes)),
        "processes": len(processes),
        "same_build": _figure(ratio),
        "load_ms": raw.solo.load_ns * 1e-6 if raw.HasField("solo") else None,
        "peak_memory_bytes": peak_memory(raw),
        "gpu_memory_bytes": raw.solo.gpu_memory_bytes if raw.solo.HasField("gpu_memory_bytes") else None,
        "joules": energy.joules.value if energy else None,
        "quiet": raw.quiet,
        "throttled": any(look.throttled for look in looks),
        "celsius": [min(heat), max(heat)] if heat else None,
    }


def board_of(snapshot: snapshot_pb2.DeviceSnapshot) -> dict[str, Any]:
    """What people read of the board in the statement."""
    processor = snapshot.processor
    return {
        "model": snapshot.device_tree_model or snapshot.product,
        "compatible": list(snapshot.device_tree_compatible),
        "machine": snapshot.machine,
        "processor": processor.model,
        "cores": processor.usable_cores,
        "memory_bytes": snapshot.memory_bytes,
        "accelerators": [one.name for one in snapshot.accelerators],
        "os": snapshot.os.name,
        "kernel": snapshot.os.kernel,
        "libc": snapshot.os.libc,
        "l4t": snapshot.os.l4t,
        "python": snapshot.python_version,
        "power_mode": snapshot.power_mode,
        "meters": list(snapshot.meters),
        "energy": snapshot.energy or snapshot.no_energy_because,
        "emulated": snapshot.emulated,
    }


def differences(proof: SelfProof) -> list[str]:
    """What the statement says and its own raw samples do not, each in a sentence; empty where every figure comes out again."""
    found = []
    if proof.statement.board != board_of(proof.snapshot) or proof.statement.emulated != proof.snapshot.emulated:
        found.append("the board that it speaks of is not the one of its snapshot")
    stated = {one.name: one.figures for one in proof.statement.runtimes}
    for name in sorted({*proof.raw, *(name for name, figures in stated.items() if figures)}):
        if name not in proof.raw:
            found.append(f"{name}: there are figures and no raw samples")
            continue
        said = stated.get(name) or {}
        found += [
            f"{name}: {key} is stated as {said.get(key)} and comes out as {value}"
            for key, value in figures_of(proof.raw[name]).items()
            if not _agree(said.get(key), value)
        ]
    return found


def unproven(proof: SelfProof) -> dict[str, str]:
    """For each runtime that was there: empty where the file shows it running, else what is missing for that."""
    answer = {}
    for one in proof.statement.runtimes:
        broken = [f"{title} ({said})" for title, said in one.contract.items() if said]
        raw = proof.raw.get(one.name)
        if not one.available:
            continue
        if not one.contract:
            answer[one.name] = f"its contract was not checked: {one.reason or 'nothing is said why'}"
        elif broken:
            answer[one.name] = f"it does not keep its contract: {broken[0]}"
        elif raw is None or raw.status != measurement_pb2.MEASUREMENT_STATUS_MEASURED or not one.figures:
            answer[one.name] = f"nothing was measured: {one.message or 'there are no raw samples'}"
        else:
            answer[one.name] = ""
    return answer


def is_same(figures: Mapping[str, Any]) -> bool | None:
    """Whether the A/A control came out as it should: the build beside itself is a tie. None where there is none."""
    ratio = figures.get("same_build")
    return None if not ratio or ratio["low"] is None else is_even(ratio["low"], ratio["high"])


def _verified(members: Mapping[str, bytes]) -> bytes:
    """The public key, once it has been shown that the statement was signed with its other half."""
    try:
        said = json.loads(members[SIGNATURE])
        public = base64.b64decode(said["public_key"], validate=True)
        signature = base64.b64decode(said["signature"], validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, members[STATEMENT])
    except InvalidSignature:
        raise IntegrityError(f"{STATEMENT} is not what was signed: the file was changed; ask for it again") from None
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise IntegrityError(f"the self-proof's signature cannot be read ({error}); ask for the file again") from error
    return public


def _statement(said: bytes) -> Statement:
    try:
        content = _printable(json.loads(said))
        form = content.get("form") if isinstance(content, dict) else None
        if isinstance(form, int) and form > FORM:
            raise InvalidInput(f"the self-proof has form {form}, this fleetfit reads {FORM}; update fleetfit")
        return Statement.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise InvalidInput(
            f"the self-proof's {STATEMENT} is no such statement: {at} is wrong ({first['msg']})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the self-proof's {STATEMENT} is no JSON ({error})") from error


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _printable(one) for key, one in value.items()}
    return (
        [_printable(one) for one in value]
        if isinstance(value, list)
        else printable(value)
        if isinstance(value, str)
        else value
    )


def _figure(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    low, high = bounds(interval)
    return {"value": interval.value, "low": low, "high": high}


def _agree(stated: Any, computed: Any) -> bool:
    if isinstance(stated, dict) and isinstance(computed, dict):
        return set(stated) == set(computed) and all(_agree(stated[key], computed[key]) for key in computed)
    if isinstance(stated, list) and isinstance(computed, list):
        return len(stated) == len(computed) and all(map(_agree, stated, computed))
    numbers = [isinstance(one, (int, float)) and not isinstance(one, bool) for one in (stated, computed)]
    return math.isclose(stated, computed, rel_tol=_RELATIVE) if all(numbers) else bool(stated == computed)


def _members(content: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            listed = archive.infolist()
            if len(listed) > _MOST_MEMBERS or sum(one.file_size for one in listed) > _MOST_BYTES:
                raise InvalidInput("this is no self-proof: it is far too large for one")
            if any(one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for one in listed):
                raise InvalidInput("this is no self-proof: it is packed in a way that none is")
            if len({one.filename for one in listed}) != len(listed):
                raise InvalidInput("this is no self-proof: two members have one name")
            return {one.filename: archive.read(one) for one in listed}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise InvalidInput(f"this is no self-proof, or the file is damaged ({error}); ask for it again") from error


def _unpacked(name: str, packed: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{name} of the self-proof cannot be read ({error})") from error
    if len(content) > _MOST_BYTES:
        raise InvalidInput(f"{name} of the self-proof is far too large for a measurement")
    return content


def _parse(message: Message, name: str, content: bytes) -> None:
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise InvalidInput(f"{name} of the self-proof cannot be read ({error})") from error
    make_printable(message)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
