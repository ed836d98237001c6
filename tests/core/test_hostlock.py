from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleetfit.core.hostlock import host_lock, lock_path

HOLD = """
import sys, time
from fleetfit.core.hostlock import host_lock
with host_lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_held_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLEETFIT_HOST_LOCK", str(tmp_path / "lock"))
    with host_lock(), pytest.raises(TimeoutError, match="not free"), host_lock(limit_s=0.1):
        pass
    with host_lock(limit_s=0.1) as held:
        assert held.begin_monotonic_ns <= time.monotonic_ns()


def test_freed_by_the_kernel_when_the_holder_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLEETFIT_HOST_LOCK", str(tmp_path / "lock"))
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(TimeoutError), host_lock(limit_s=0.2):
            pass
        holder.kill()
        holder.wait()
        with host_lock(limit_s=5) as held:
            assert held.waited_ns < 5e9


def test_waiting_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLEETFIT_HOST_LOCK", str(tmp_path / "lock"))
    short = HOLD.replace("600", "0.5")
    with subprocess.Popen([sys.executable, "-c", short], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with host_lock() as held:
            assert held.waited_ns > 0.2e9


def test_one_file_per_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETFIT_HOST_LOCK")
    assert lock_path() == lock_path()
    assert lock_path().name == "fleetfit-host.lock"
