"""Looking at a device whose runtimes, a third party's, do harm as soon as they are asked whether they can be used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fleetfit.agent import __main__ as resident
from fleetfit.agent.__main__ import probe_device
from fleetfit.core.children import ChildOutcome
from fleetfit.core.errors import ExhaustedResource, FleetfitError, TimedOut, UnsupportedHere

from .plugins import install

# Under names of ours, which are found there first, so that nothing else has to be asked.
_HARMFUL = """
import ctypes, os, time
from fleetfit.runtimes.base import Availability, Runtime

class Base(Runtime):
    formats = ("onnx",)
    def load(self, build, *, threads): raise NotImplementedError

class Hangs(Base):
    def availability(self): time.sleep(600)

class Crashes(Base):
    def availability(self): ctypes.string_at(0)

class Leaves(Base):
    def availability(self): os._exit(7)

class Raises(Base):
    def availability(self): raise RuntimeError("no such chip")

class Talks(Base):
    def availability(self):
        print("hello from a library", flush=True)
        os.write(1, b"and from its native half")
        return Availability(True, "", "1.0", ("CPU",))
"""
HARMFUL = {
    "ncnn": "Hangs",
    "onnxruntime-cuda": "Crashes",
    "onnxruntime-tensorrt": "Leaves",
    "openvino": "Raises",
    "tensorrt": "Talks",
}


def test_a_runtime_that_crashes_or_hangs_is_one_that_cannot_be_used_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = install(tmp_path / "site", "harmful", _HARMFUL, {"fleetfit.runtimes": HARMFUL})
    monkeypatch.setenv("PYTHONPATH", str(site))
    # A checkout says which runtimes are ours, and children look where they are started first.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resident, "_TOGETHER_S", 3.0)
    # Long enough for one of ours on a busy machine.
    monkeypatch.setattr(resident, "_EACH_S", 12.0)
    (tmp_path / "state").mkdir()
    snapshot = asyncio.run(probe_device(tmp_path / "state", threads=1, emulated=False))
    found = {one.name: one for one in snapshot.runtimes}
    assert found["onnxruntime"].available and found["onnxruntime"].version
    assert found["tensorrt"].available and list(found["tensorrt"].providers) == ["CPU"]
    # Others of ours that this machine cannot use have reasons of their own.
    reasons = {name: found[name].reason for name in HARMFUL if not found[name].available}
    advice = "; install that runtime again, or remove it"
    assert reasons == {
        "ncnn": f"it did not say within 12 s whether it can be used{advice}",
        "onnxruntime-cuda": f"asking whether it can be used crashed its process (SIGSEGV){advice}",
        "onnxruntime-tensorrt": f"asking whether it can be used ended its process (exit code 7: and not a word){advice}",
        "openvino": f"asking whether it can be used failed (RuntimeError: no such chip){advice}",
    }
    assert snapshot.threads == 1 and snapshot.host_name
    assert "looking at this device ended as timed_out; each runtime is now asked in a process of its own" in caplog.text
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["snapshot.pb"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("timed_out", TimedOut),
        ("out_of_memory", ExhaustedResource),
        ("crashed", UnsupportedHere),
        ("failed", UnsupportedHere),
    ],
)
def test_a_device_that_cannot_be_looked_at_at_all_says_so_and_is_looked_at_again_where_that_may_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: type[FleetfitError]
) -> None:
    asked: list[list[str]] = []

    async def child(arguments: list[str], *_: Any, **__: Any) -> ChildOutcome:
        asked.append(arguments)
        return ChildOutcome(kind, 1, "one\nthe last words\n")

    monkeypatch.setattr(resident, "run_child", child)
    with pytest.raises(error, match=rf"cannot be probed \({kind}: the last words\); run `fleetfit agent doctor`"):
        asyncio.run(probe_device(tmp_path, threads=0, emulated=False))
    assert ["--apart" in arguments for arguments in asked] == [False, True]


def test_a_full_disk_is_no_fault_of_a_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def child(*_: Any, **__: Any) -> ChildOutcome:
        return ChildOutcome("failed", 1, "OSError: [Errno 28] No space left on device")

    monkeypatch.setattr(resident, "run_child", child)
    with pytest.raises(ExhaustedResource, match="disk is full"):
        asyncio.run(probe_device(tmp_path, threads=0, emulated=False))
