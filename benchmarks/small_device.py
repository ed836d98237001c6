"""An agent that has 512 MiB in all and one folder to write to: `sudo python -m benchmarks.small_device`.

A real server runs outside. The agent and all its children are in a control group (of either version, whichever the kernel has) with
that limit on memory and without swap, and see this system's own files, mounted read-only all but the agent's folder: no /tmp, no
/run/lock, no working folder. There `agent doctor` looks around, and the agent enrols, measures a network, is given one that does
not fit, and measures the first again. Needs root and unshare.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import Outcome, run
from fleetfit.client.client import Client
from fleetfit.client.demo.fleet import DemoFleet
from fleetfit.client.requests import Wanted
from fleetfit.proto.v1 import devices_pb2

_MIB: Final = 1 << 20
LIMIT_MIB: Final = 512
_NAME: Final = "small"
_FITS, _TOO_LARGE = 1024, 8192
_ROOT: Final = Path("/sys/fs/cgroup")
# Where the agent's folder is seen from inside.
_INSIDE: Final = "/mnt"
CLAIM = (
    f"An agent that has {LIMIT_MIB} MiB in all, on a read-only system with one writable folder, enrols, measures, calls a build "
    "that does not fit out_of_memory, and goes on measuring."
)


@dataclass(frozen=True)
class Group:
    """A control group that limits memory, with the names that its version has for the same things."""

    folder: Path
    limit: str
    swap: str
    anonymous: str
    kills: str

    @property
    def held_bytes(self) -> int:
        """What nobody can take away: no page of a file."""
        return self._counter("memory.stat", self.anonymous)

    @property
    def oom_kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        return self._counter(self.kills, "oom_kill")

    def _counter(self, name: str, key: str) -> int:
        words = (line.split() for line in (self.folder / name).read_text().splitlines())
        return next(int(value) for found, value in words if found == key)


@contextmanager
def _group(limit_bytes: int) -> Iterator[Group]:
    name = f"fleetfit-{os.getpid()}"
    old = _ROOT / "memory"
    if old.is_dir():
        group = Group(
            old / name, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "total_rss", "memory.oom_control"
        )
        swap = limit_bytes
    else:
        (_ROOT / "cgroup.subtree_control").write_text("+memory")
        group = Group(_ROOT / name, "memory.max", "memory.swap.max", "anon", "memory.events")
        swap = 0
    group.folder.mkdir()
    try:
        (group.folder / group.limit).write_text(str(limit_bytes))
        if (group.folder / group.swap).exists():
            (group.folder / group.swap).write_text(str(swap))
        yield group
    finally:
        for _ in range(50):
            try:
                group.folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def _inside(group: Group, state: Path, *words: str) -> list[str]:
    """The command that runs fleetfit in the group, on this system's files as they would be on one that is read-only."""
    writable = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        kept = point.startswith(("/proc", "/sys")) or (point.startswith("/dev") and point != "/dev/shm")  # noqa: S108
        if "rw" in options.split(",") and not kept and kind != "autofs":
            writable.append(point)
    read_only = [f"mount -o remount,bind,ro {shlex.quote(point)}" for point in dict.fromkeys(writable)]
    steps = [f"mount --bind {shlex.quote(str(state))} {_INSIDE}", *read_only, "cd /"]
    command = shlex.join([sys.executable, "-m", "fleetfit", "agent", "--state", f"{_INSIDE}/state", *words])
    mounted = shlex.join(["unshare", "--mount", "sh", "-c", f"{' && '.join(steps)} && exec {command}"])
    return ["sh", "-c", f"echo $$ > {shlex.quote(str(group.folder / 'cgroup.procs'))} && exec {mounted}"]


def _environment() -> dict[str, str]:
    names = ("FLEETFIT_SERVER", "FLEETFIT_TOKEN", "FLEETFIT_HOST_LOCK", "TMPDIR", "TEMP", "TMP")
    return {name: value for name, value in os.environ.items() if name not in names} | {"NO_COLOR": "1"}


def _model(width: int) -> bytes:
    """A square layer of that width: of 1024, 4 MB of weights."""
    made = np.random.default_rng(0).standard_normal((width, width), dtype=np.float32) / np.float32(width)
    weights = numpy_helper.from_array(made, "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "layer", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def small_device(quick: bool) -> Outcome:
    """One agent in its group; `--quick` measures by the quick method."""
    with tempfile.TemporaryDirectory(prefix="fleetfit-small-") as name, _group(LIMIT_MIB * _MIB) as group:
        folder = Path(name)
        state = folder / "agent"
        state.mkdir()
        for model, width in (("fits", _FITS), ("too-large", _TOO_LARGE)):
            (folder / f"{model}.onnx").write_bytes(_model(width))
        with DemoFleet(folder / "fleet") as fleet, fleet.start_server("quick" if quick else "standard") as client:
            figures = _lived(folder, state, group, client)
    doctor = figures["doctor"]
    holds = (
        figures["fits"]["state"] == figures["fits_again"]["state"] == "measured"
        and figures["too_large"]["state"] == "failed"
        and "needs more memory than the device has free" in figures["too_large"]["detail"]
        and figures["agent_lives"]
        and figures["memory_told_mib"] == LIMIT_MIB
        # It has none yet.
        and {what for what, verdict in doctor.items() if verdict == "missing"} == {"identity"}
    )
    return CLAIM, figures, holds


def _lived(folder: Path, state: Path, group: Group, client: Client) -> dict[str, Any]:
    looked = subprocess.run(
        _inside(group, state, "doctor", "--json"), env=_environment(), capture_output=True, text=True, check=False
    )
    if not looked.stdout:
        raise SystemExit(f"agent doctor said nothing: {looked.stderr}")
    doctor = {one["what"]: one["verdict"] for one in json.loads(looked.stdout.strip().splitlines()[-1])["findings"]}
    token = client.enrolment_token(_NAME).token
    words = ["--server", client.address, "--token", token, "--threads", "1", "--json"]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(_inside(group, state, *words), env=_environment(), stdout=log, stderr=log)
    held, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            held.append(group.held_bytes)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        device = _wait_for(client, agent, folder / "agent.log")
        for model in ("fits", "too-large"):
            client.push_model(folder / f"{model}.onnx", model)
        fits, too_large, again = (_bench(client, model) for model in ("fits", "too-large", "fits"))
        time.sleep(3)
        resident = int(_status(agent.pid, "VmRSS")) / 1024
        lives = agent.poll() is None and (folder / "agent.log").read_text().count("connected to") == 1
    finally:
        ended.set()
        looking.join()
        agent.terminate()
        agent.wait(30)
    return {
        "limit_mib": LIMIT_MIB,
        "control_groups": "v1" if "limit_in_bytes" in group.limit else "v2",
        "doctor": doctor,
        "memory_told_mib": device.snapshot.memory_bytes / _MIB,
        "fits": fits,
        "too_large": too_large,
        "fits_again": again,
        "agent_lives": lives,
        "most_held_mib": max(held) / _MIB,
        "agent_resident_mib": resident,
        "ended_by_the_kernel": group.oom_kills,
        "temporary_folder": (state / "state" / "tmp").is_dir(),
    }


def _bench(client: Client, model: str) -> dict[str, Any]:
    job = client.wait(client.start(Wanted(model, on=[_NAME], bench=True)).job_id)
    (candidate,) = job.candidates
    found: dict[str, Any] = {"state": candidate.state, "detail": candidate.detail}
    if candidate.state == "measured":
        (device,) = client.report(job.job_id)["devices"]
        (reported,) = device["candidates"]
        found["p50_ms"] = reported["latency_ms"]["p50"]
        found["peak_memory_mib"] = reported["peak_memory_bytes"] / _MIB
    return found


def _wait_for(client: Client, agent: subprocess.Popen[bytes], log: Path) -> devices_pb2.Device:
    for _ in range(600):
        for device in client.devices():
            if device.name == _NAME and device.HasField("snapshot"):
                return device
        if agent.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(f"the agent never connected: {log.read_text(errors='replace')[-2000:]}")


def _status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    sys.exit(run("small_device", small_device))
