"""Folders for PYTHONPATH: a third party's runtime that does harm on request, and a server that is less patient than ours."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# The name of our own adapter, for servers build for runtimes that they know; what comes first on the path is found first.
_HARMFUL: Final = """
import ctypes, os, sys, time
from pathlib import Path
from fleetfit.runtimes.onnxruntime import OnnxRuntime

def nothing(): pass

def segfault(): ctypes.string_at(0)

def leave(): os._exit(7)

def leave_content(): os._exit(0)

def eat():
    kept = []
    while True:
        kept.append(bytearray(16 << 20))
        kept[-1][::4096] = bytes(len(kept[-1]) // 4096)

def stay():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()

def talk_for_ever():
    stay()
    while True:
        for descriptor in (1, 2):
            os.write(descriptor, b"x" * 4096)

def complain(): raise RuntimeError("no such kernel\\nin 3 lines\\nof text")

class Segfaulting(OnnxRuntime):
    def availability(self): segfault()

class Harmful(OnnxRuntime):
    def load(self, build, *, threads):
        globals()[Path(os.environ["HARM"]).read_text()]()
        return super().load(build, threads=threads)
"""
_OTHER_METHOD: Final = """
from fleetfit.proto import methods

ours = methods.named_method

def named_method(name):
    method = ours(name)
    for field, value in {changed}.items():
        setattr(method, field, value)
    return method

methods.named_method = named_method
"""
_SHIFTED: Final = """
import os, time

real_time, real_time_ns = time.time, time.time_ns

def ahead():
    with open(os.environ["CLOCK"]) as file:
        return int(file.read())

time.time = lambda: real_time() + ahead()
time.time_ns = lambda: real_time_ns() + ahead() * 10**9
"""


def harmful_runtime(folder: Path) -> Path:
    """A site with an adapter that does, when it loads a build, what the file says that HARM names, and one that crashes at once."""
    facts = folder / "harmful-1.0.dist-info"
    facts.mkdir(parents=True)
    (folder / "harmful_adapter.py").write_text(_HARMFUL)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: harmful\nVersion: 1.0\n")
    entries = ("onnxruntime = harmful_adapter:Harmful", "segfaulting = harmful_adapter:Segfaulting")
    (facts / "entry_points.txt").write_text("\n".join(("[fleetfit.runtimes]", *entries, "")))
    return folder


def other_method(folder: Path, **changed: int) -> Path:
    """A site with which a server has its devices measure by a method that differs in these fields."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_OTHER_METHOD.format(changed=changed))
    return folder


def impatient_server(folder: Path, seconds: int) -> Path:
    """A site with which a server gives a trial so many seconds between two signs of life, not minutes."""
    return other_method(folder, child_limit_ns=seconds * 10**9)


class Clock:
    """A wall clock that Python's processes see instead of the machine's. The monotonic clock stays as it is.

    Not for certificates, which TLS holds against the machine's: tests/agent and tests/server try those. Nor behind the machine's,
    for gRPC's Python half computes deadlines by this clock and its core waits by the other.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SHIFTED)
        self._file = folder / "seconds"
        self.surroundings = {"PYTHONPATH": str(folder), "CLOCK": str(self._file)}
        self.set(0)

    def set(self, days: float) -> None:
        """So many days ahead of the machine's clock."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{days * 86400:.0f}")
        fresh.replace(self._file)
