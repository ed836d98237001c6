"""What an agent costs a device that it waits on: `python -m benchmarks.footprint`.

A real server and a real agent with mutual TLS between them; the agent enrols, measures a small model, and is then left alone.
Its process is watched from outside. The installed size is that of `pip install fleetfit` into an empty folder, with all it
brings along and the compiled files, without any runtime.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.harness import Outcome, run
from fleetfit.client.demo.fleet import DemoFleet
from fleetfit.client.requests import Wanted

_ROOT: Final = Path(__file__).parent.parent
_MIB: Final = 1 << 20
MOST_RESIDENT_MIB, MOST_SHARE, MOST_INSTALLED_MIB = 45, 0.001, 60
_NAME: Final = "at-rest"
# After a task the agent tidies its cache and sends what is left to send.
_SETTLE_S: Final = 30.0
CLAIM = (
    f"An agent at rest, enrolled with mutual TLS and with a task behind it, keeps at most {MOST_RESIDENT_MIB} MiB resident and "
    f"takes at most {MOST_SHARE:.1%} of one core; installed without runtimes it needs at most {MOST_INSTALLED_MIB} MiB."
)


def footprint(quick: bool) -> Outcome:
    """Watch an agent for ten minutes; `--quick` for ten seconds, and installs nothing."""
    with tempfile.TemporaryDirectory(prefix="fleetfit-footprint-") as name:
        figures = _at_rest(Path(name), 10.0 if quick else 600.0, 2.0 if quick else _SETTLE_S)
        installed = None if quick else _installed(Path(name) / "installed")
    figures["installed_mib"] = installed["all"] if installed else None
    figures["installed_parts_mib"] = installed
    holds = figures["resident_mib"] <= MOST_RESIDENT_MIB and figures["share_of_a_core"] <= MOST_SHARE
    return CLAIM, figures, holds and (installed is None or installed["all"] <= MOST_INSTALLED_MIB)


def _at_rest(folder: Path, seconds: float, settle_s: float) -> dict[str, Any]:
    model = _model(folder)
    with DemoFleet(folder / "fleet") as fleet, fleet.start_server("quick") as client:
        fleet.start_agent(client, _NAME, 1)
        agent = _process()
        before = agent.memory_info().rss
        pushed = client.push_model(model, "small")
        job = client.wait(client.start(Wanted(pushed.name, on=[_NAME], bench=True)).job_id)
        (device,) = client.report(job.job_id)["devices"]
        if [c["status"] for c in device["candidates"]] != ["measured"]:
            raise SystemExit(f"the agent measured nothing: {device['why']}")
        time.sleep(settle_s)
        began, times = time.monotonic(), agent.cpu_times()
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


def _process() -> psutil.Process:
    (agent,) = [
        child for child in psutil.Process().children() if "fleetfit.agent" in child.cmdline() and child.is_running()
    ]
    return agent


def _installed(folder: Path) -> dict[str, float]:
    """Mebibytes of each installed folder or file over half of one, and of all."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # A copy: building in the repository would leave folders behind.
    subprocess.run(
        [*command, "--constraint", str(_ROOT / "constraints.txt"), "--target", str(folder), str(_ROOT)], check=True
    )
    sizes = {one.name: _size(one) for one in folder.iterdir()}
    compiled = sum(_size(one) for one in folder.rglob("*.pyc"))
    large = {name: size for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size >= 0.5}
    return {"all": sum(sizes.values()), "compiled": compiled, **large}


def _size(path: Path) -> float:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file() and not one.is_symlink()]
    # What they take up on the disk.
    return sum(one.stat().st_blocks * 512 for one in files) / _MIB


if __name__ == "__main__":
    sys.exit(run("footprint", footprint))
