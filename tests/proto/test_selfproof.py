"""The file of `fleetfit selfproof`: what was changed is seen, and figures come out of samples."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.core.errors import FleetfitError, IntegrityError, InvalidInput
from fleetfit.proto.selfproof import (
    SIGNATURE,
    SNAPSHOT,
    STATEMENT,
    CheckedRuntime,
    differences,
    figures_of,
    is_same,
    seal,
    unproven,
    unseal,
)
from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2

from .proofs import MADE, proof, samples, statement

BOARD = snapshot_pb2.DeviceSnapshot(
    machine="aarch64",
    device_tree_model="Raspberry Pi 4 Model B Rev 1.4",
    device_tree_compatible=["raspberrypi,4-model-b", "brcm,bcm2711"],
)
CONTENT = proof(BOARD)


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, one in files.items():
            archive.writestr(name, one)
    return out.getvalue()


def test_what_was_sealed_comes_out_again() -> None:
    found = unseal(CONTENT)
    assert found.snapshot == BOARD and found.raw == {"onnxruntime": samples()}
    assert found.statement.made == MADE and len(found.fingerprint) == 64
    assert differences(found) == [] and unproven(found) == {"onnxruntime": ""}
    # The statement can be read by whoever unzips it, before it is sent.
    said = json.loads(members(CONTENT)[STATEMENT])
    assert said["board"]["model"] == "Raspberry Pi 4 Model B Rev 1.4"
    figures = said["runtimes"][0]["figures"]
    assert 0.9 < figures["p50_ms"]["value"] < 1.1 and figures["peak_memory_bytes"] == 30_000_000
    assert figures["samples"] == 1300 and figures["processes"] == 7 and figures["celsius"] == [41.5, 41.5]
    assert figures["same_build"]["low"] < 1 < figures["same_build"]["high"] and is_same(figures) is True


def test_every_file_has_a_key_of_its_own() -> None:
    assert unseal(CONTENT).fingerprint != unseal(proof(BOARD)).fingerprint


CHANGES: dict[str, Callable[[dict[str, bytes]], object]] = {
    "the statement": lambda files: files.update({STATEMENT: files[STATEMENT].replace(b"standard", b"quick")}),
    "a blank of the statement": lambda files: files.update({STATEMENT: files[STATEMENT] + b" "}),
    "the board": lambda files: files.update({SNAPSHOT: b""}),
    "the samples": lambda files: files.update({"onnxruntime.pb.gz": members(proof(BOARD))["snapshot.pb"]}),
    "samples taken out": lambda files: files.pop("onnxruntime.pb.gz"),
    "samples put in": lambda files: files.update({"ncnn.pb.gz": files["onnxruntime.pb.gz"]}),
    "another signature": lambda files: files.update({SIGNATURE: members(proof(BOARD, method="quick"))[SIGNATURE]}),
    "no key": lambda files: files.update({SIGNATURE: b"{}"}),
    "a short key": lambda files: files.update({SIGNATURE: b'{"public_key": "AAAA", "signature": "AAAA"}'}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_seen(change: str) -> None:
    files = members(CONTENT)
    CHANGES[change](files)
    with pytest.raises(IntegrityError) as caught:
        unseal(packed(files))
    assert "\n" not in caught.value.message


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
def test_no_bit_can_be_flipped_that_matters(at: int, bit: int) -> None:
    flipped = bytearray(CONTENT)
    flipped[at] ^= 1 << bit
    try:
        found = unseal(bytes(flipped))
    except FleetfitError as error:
        assert "\n" not in error.message
        return
    # What is left are a zip's own fields, such as a date.
    whole = unseal(CONTENT)
    assert (found.statement, found.snapshot, found.raw) == (whole.statement, whole.snapshot, whole.raw)


@pytest.mark.parametrize(
    "content", [b"", b"hello", packed({}), packed({STATEMENT: b"{}"}), CONTENT[: len(CONTENT) // 2]]
)
def test_what_is_no_self_proof_is_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(InvalidInput, match="no self-proof") as caught:
        unseal(content)
    assert "\n" not in caught.value.message


def test_a_statement_of_another_form_is_refused_though_it_is_signed() -> None:
    with pytest.raises(InvalidInput, match="has form 9, this fleetfit reads 1; update fleetfit"):
        unseal(proof(BOARD, form=9))


def test_figures_that_do_not_follow_from_the_samples_are_told() -> None:
    raw = samples()
    better = figures_of(raw)
    better["p50_ms"] = better["p50_ms"] | {"value": better["p50_ms"]["value"] * 0.99}
    better["throttled"] = True
    lying = [CheckedRuntime(name="onnxruntime", available=True, contract={"a": ""}, figures=better)]
    said = differences(unseal(seal(statement(BOARD, raw, runtimes=lying), BOARD, {"onnxruntime": raw})))
    assert len(said) == 2 and said[0].startswith("onnxruntime: p50_ms is stated as {'value': 0.9")
    assert said[1] == "onnxruntime: throttled is stated as True and comes out as False"
    unknown = unseal(seal(statement(BOARD, raw), BOARD, {}))
    assert differences(unknown) == ["onnxruntime: there are figures and no raw samples"]
    other = snapshot_pb2.DeviceSnapshot(machine="aarch64", device_tree_model="Raspberry Pi 5 Model B Rev 1.0")
    said = differences(unseal(seal(statement(BOARD, raw), other, {"onnxruntime": raw})))
    assert said == ["the board that it speaks of is not the one of its snapshot"]


def test_emulation_cannot_be_left_out_of_the_statement() -> None:
    emulated = snapshot_pb2.DeviceSnapshot(machine="aarch64", emulated=True)
    raw = samples()
    hidden = statement(emulated, raw, emulated=False)
    assert differences(unseal(seal(hidden, emulated, {"onnxruntime": raw})))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"contract": {}}, "its contract was not checked"),
        ({"contract": {"a": "", "b": "it crashed"}}, r"it does not keep its contract: b \(it crashed\)"),
        ({"figures": None, "message": "too little memory"}, "nothing was measured: too little memory"),
    ],
)
def test_a_runtime_is_proven_only_if_all_of_it_was_seen(changed: dict[str, object], why: str) -> None:
    raw = samples()
    whole = statement(BOARD, raw)
    runtimes = [whole.runtimes[0].model_copy(update=changed)]
    found = unseal(seal(whole.model_copy(update={"runtimes": runtimes}), BOARD, {"onnxruntime": raw}))
    with pytest.raises(AssertionError, match=why):
        assert unproven(found)["onnxruntime"] == "", unproven(found)["onnxruntime"]


def test_a_measurement_that_failed_proves_nothing() -> None:
    raw = samples()
    raw.status = measurement_pb2.MEASUREMENT_STATUS_CRASHED
    found = unseal(seal(statement(BOARD, raw), BOARD, {"onnxruntime": raw}))
    assert unproven(found)["onnxruntime"]


def test_text_that_a_terminal_would_obey_is_cleaned() -> None:
    board = snapshot_pb2.DeviceSnapshot(machine="aarch64", device_tree_model="\x1b[2Jboard")
    found = unseal(proof(board, method="\x1b[31mstandard"))
    assert found.statement.method == "\ufffd[31mstandard"
    assert found.statement.board["model"] == "\ufffd[2Jboard" and differences(found) == []
