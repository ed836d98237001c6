"""What an agent costs a device that it waits on: `python -m benchmarks.footprint`.

A real server and a real agent with mutual TLS between them, installed by the line of `devices enroll` as on a device; the agent
enrols, measures a small model, and is then left alone. Its process is watched from outside. The installed size is that of the
folder that the same line makes without any runtime, apart from the agent's own state. Wheels come from the package index, in
the versions of constraints.txt, once, into the user's cache.

The agent is watched as after a start of the device, when nothing of it was in the kernel's page cache: a library that has just been
written lies there in large pieces, and of these all counts as resident where the agent asks for a part. That figure stands beside.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.harness import Outcome, cache_folder, run
from fleetfit.client.client import Client
from fleetfit.client.commands.devices import install_line
from fleetfit.client.demo.fleet import DemoFleet
from fleetfit.client.requests import Wanted
from fleetfit.core.digests import sha256_file
from fleetfit.proto.v1 import devices_pb2
from fleetfit.server.install.fetching import fetch
from fleetfit.server.install.shelf import Shelf, Target

_CONSTRAINTS: Final = Path(__file__).parent.parent / "constraints.txt"
_MIB: Final = 1 << 20
MOST_RESIDENT_MIB, MOST_SHARE, MOST_INSTALLED_MIB = 45, 0.001, 60
_NAME: Final = "at-rest"
_RUNTIME: Final = "onnxruntime"
_READY_S: Final = 90.0
# After a task the agent tidies its cache and sends what is left to send.
_SETTLE_S: Final = 30.0
CLAIM = (
    f"An agent at rest, enrolled with mutual TLS and with a task behind it, keeps at most {MOST_RESIDENT_MIB} MiB resident and "
    f"takes at most {MOST_SHARE:.1%} of one core; installed without runtimes it needs at most {MOST_INSTALLED_MIB} MiB."
)


def footprint(quick: bool) -> Outcome:
    """Install an agent and watch it for ten minutes; `--quick` for ten seconds."""
    wheels = _wheels()
    with tempfile.TemporaryDirectory(prefix="fleetfit-footprint-") as name:
        folder = Path(name)
        model = _model(folder)
        shutil.copytree(wheels, folder / "fleet" / "state" / "wheels")
        with DemoFleet(folder / "fleet") as fleet, fleet.start_server("quick") as client:
            _paste(client, "bare", folder / "bare", "none")
            _paste(client, _NAME, folder / "device", _RUNTIME)
            bare, whole = _sizes(folder / "bare"), _sizes(folder / "device")
            with _agent(client, folder / "device") as agent:
                fresh = agent.memory_info().rss / _MIB
            _forget_pages(folder / "device")
            with _agent(client, folder / "device") as agent:
                figures = _at_rest(client, model, agent, 10.0 if quick else 600.0, 2.0 if quick else _SETTLE_S)
            # Nothing may have been compiled meanwhile that was not there before.
            grown = _sizes(folder / "device")["all"] - whole["all"]
    figures |= {
        "installed_mib": bare["all"],
        "installed_parts_mib": bare,
        f"installed_with_{_RUNTIME}_mib": whole["all"],
    }
    figures |= {"resident_just_installed_mib": fresh, "grown_mib": grown}
    holds = figures["resident_mib"] <= MOST_RESIDENT_MIB and figures["share_of_a_core"] <= MOST_SHARE
    return CLAIM, figures, holds and bare["all"] + max(grown, 0) <= MOST_INSTALLED_MIB


def _wheels() -> Path:
    """A folder of wheels for this Python."""
    target = Target((sys.version_info[0], sys.version_info[1]), platform.machine())
    cache = cache_folder("footprint", {"target": str(target), "constraints": sha256_file(_CONSTRAINTS)})
    os.environ["PIP_CONSTRAINT"] = str(_CONSTRAINTS)
    fetch(Shelf(cache / "wheels"), [target], [_RUNTIME], lambda said: print(said, file=sys.stderr, flush=True))
    return cache / "wheels"


def _paste(client: Client, name: str, folder: Path, runtime: str) -> None:
    """What a person does on a device that has nothing of ours."""
    made = client.enrolment_token(name)
    line = install_line(made, client.address, ["--server", client.address, "--token", made.token, "--name", name])
    more = ["--dir", str(folder), "--runtime", runtime, "--no-service"]
    path = f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(folder.with_name("home"))}
    subprocess.run(f"{line} {shlex.join(more)}", shell=True, check=True, env=environment)  # noqa: S602 - our own line


@contextmanager
def _agent(client: Client, folder: Path) -> Iterator[psutil.Process]:
    with (folder.with_suffix(".log")).open("wb") as log:
        agent = subprocess.Popen([folder / "fleetfit", "agent", "--threads", "1"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _READY_S
        while client.device(_NAME).state != devices_pb2.DEVICE_STATE_ONLINE:
            if agent.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the agent did not start: {folder.with_suffix('.log').read_text()}")
            time.sleep(0.2)
        # Until its first words with the server are said.
        time.sleep(2)
        yield psutil.Process(agent.pid)
    finally:
        agent.terminate()
        agent.wait(30)


def _forget_pages(folder: Path) -> None:
    """Take the folder's files out of the kernel's page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _at_rest(client: Client, model: Path, agent: psutil.Process, seconds: float, settle_s: float) -> dict[str, Any]:
    before = agent.memory_info().rss
    pushed = client.push_model(model, "small")
    job = client.wait(client.start(Wanted(pushed.name, on=[_NAME], bench=True)).job_id)
    (device,) = client.report(job.job_id)["devices"]
    if [c["status"] for c in device["candidates"]] != ["measured"]:
        raise SystemExit(f"the agent measured nothing: {device['why']}")
    time.sleep(settle_s)
    began, times = time.monotonic(), agent.cpu_times()
    psutil.cpu_percent()
    resident = []
    while time.monotonic() - began < seconds:
        time.sleep(min(10.0, seconds / 5))
        resident.append(agent.memory_info().rss / _MIB)
    spent = agent.cpu_times()
    took = time.monotonic() - began
    memory = agent.memory_full_info()
    return {
        "watched_s": took,
        "resident_mib": max(resident),
        "resident_before_the_task_mib": before / _MIB,
        "proportional_mib": memory.pss / _MIB,
        "share_of_a_core": (spent.user + spent.system - times.user - times.system) / took,
        "machine_busy": psutil.cpu_percent() / 100,
        "threads": agent.num_threads(),
        "open_files": agent.num_fds(),
        "children": len(agent.children()),
    }


def _model(folder: Path) -> Path:
    import torch
    from torch import nn

    from fleetfit.client.export import export

    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    return export(layers, (torch.zeros(2, 64),), folder / "small.pt2")


def _sizes(folder: Path) -> dict[str, float]:
    """Mebibytes of an agent's folder without its state, of the compiled files in it, and of each package over half of one."""
    (site,) = (folder / "venv").glob("lib/python3*/site-packages")
    state = folder / "state"
    packages = {one.name: _size(one) for one in site.iterdir()}
    large = {name: size for name, size in sorted(packages.items(), key=lambda item: -item[1]) if size >= 0.5}
    compiled = sum(_size(one) for one in site.rglob("*.pyc"))
    return {"all": _size(folder) - _size(state), "compiled": compiled, **large}


def _size(path: Path) -> float:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file() and not one.is_symlink()]
    # What they take up on the disk.
    return sum(one.stat().st_blocks * 512 for one in files) / _MIB


if __name__ == "__main__":
    sys.exit(run("footprint", footprint))
