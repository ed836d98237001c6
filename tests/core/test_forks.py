from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fleetfit.core import forks as module
from fleetfit.core.forks import forks, private_bytes, proportional_bytes

# Forks twice from a thread of its own; each of the two holds 20 MiB for itself, and what its parent held is shared.
_FAMILY = """
import os, threading, time
kept = bytearray(b"x" * (40 << 20))
def work():
    for _ in range(2):
        if os.fork() == 0:
            own = bytearray(20 << 20)
            own[::4096] = bytes(5120)
            time.sleep(600)
    print("ready", flush=True)
    time.sleep(600)
threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("listed", [True, False])
def test_what_was_forked_is_found_with_what_it_holds_for_itself(monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    """By the kernel's list of children where it has one, else by the parents of all."""
    monkeypatch.setattr(
        module, "_lists_children", lambda: listed and module.Path("/proc/thread-self/children").exists()
    )
    with subprocess.Popen([sys.executable, "-c", _FAMILY], stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        try:
            until = time.monotonic() + 30
            while len(found := forks(parent.pid)) < 2 or min(map(private_bytes, found)) < 20 << 20:
                assert time.monotonic() < until
                time.sleep(0.05)
            assert len(found) == 2 and parent.pid not in found
            assert set(found) <= set(forks(os.getpid()))
            for pid in found:
                # The 40 MiB are the parent's, and of each in part.
                assert 20 << 20 <= private_bytes(pid) < 40 << 20
                assert private_bytes(pid) + (10 << 20) < proportional_bytes(pid)
        finally:
            os.killpg(parent.pid, 9)
    assert forks(parent.pid) == [] and private_bytes(parent.pid) == 0
