"""The line of `devices enroll`, pasted into clean systems that have no network but the server: `sudo python -m benchmarks.roots`.

Each system is made by mmdebstrap from its distribution's own packages, with python3 and libstdc++ alone, and is read-only but
for one folder; server, command line and agents run in a network namespace that holds a loopback device only. There an agent is
installed, measures a model, is installed again, and is taken away. Needs root, mmdebstrap and unshare; wheels are fetched before,
once, into the user's cache.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import Outcome, cache_folder, run

CLAIM = (
    "On clean Debian 12 and 13 and Ubuntu 22.04 and 24.04 with python3 and libstdc++ alone and no internet, the one line of "
    "`devices enroll` installs an agent that measures; again it changes nothing, and its uninstall leaves nothing."
)
_DEBIAN: Final = "http://deb.debian.org/debian"
_UBUNTU: Final = "http://archive.ubuntu.com/ubuntu"
_UBUNTU_KEYS: Final = f"{_UBUNTU}/pool/main/u/ubuntu-keyring/ubuntu-keyring_2023.11.28.1_all.deb"
_FLEETFIT: Final = Path(sys.executable).parent / "fleetfit"
_INSIDE: Final = "FLEETFIT_ROOTS_INSIDE"
_WRITABLE: Final = "/srv/agent"
_FOLDER: Final = f"{_WRITABLE}/fleetfit"


@dataclass(frozen=True)
class System:
    """A distribution's release, and the Python that it has."""

    name: str
    suite: str
    mirror: str
    python: str


SYSTEMS: Final = (
    System("Debian 12", "bookworm", _DEBIAN, "3.11"),
    System("Debian 13", "trixie", _DEBIAN, "3.13"),
    System("Ubuntu 22.04", "jammy", _UBUNTU, "3.10"),
    System("Ubuntu 24.04", "noble", _UBUNTU, "3.12"),
)


def roots(quick: bool) -> Outcome:
    """Every system, or the first with `--quick`; made and fetched with a network, tried without."""
    systems = SYSTEMS[:1] if quick else SYSTEMS
    cache = cache_folder("roots", {"systems": [system.suite for system in SYSTEMS]})
    for system in systems:
        _make(system, cache)
        # What a run that was cut left behind is enrolled with that run's server.
        for left in (cache / system.suite / _WRITABLE.strip("/")).iterdir():
            shutil.rmtree(left)
    state = cache / "state"
    _fetch(systems, state)
    with tempfile.TemporaryDirectory(prefix="tried-", dir=cache) as name:
        work = Path(name)
        (work / "model.onnx").write_bytes(_model())
        # A server that has never met these devices.
        shutil.copytree(state / "wheels", work / "state" / "wheels", copy_function=os.link)
        inside = [sys.executable, "-m", "benchmarks.roots", str(cache), str(work), *(one.suite for one in systems)]
        command = f"ip link set lo up && exec {shlex.join(inside)}"
        subprocess.run(["unshare", "--net", "sh", "-c", command], check=True, env=os.environ | {_INSIDE: "1"})
        found: list[dict[str, Any]] = json.loads((work / "found.json").read_text())
    return CLAIM, {"systems": found}, all(one["holds"] for one in found)


def _make(system: System, cache: Path) -> None:
    root = cache / system.suite
    if (root / ".made").exists():
        return
    command = ["mmdebstrap", "--variant=minbase", "--include=python3,ca-certificates,libstdc++6"]
    if system.mirror == _UBUNTU:
        package = cache / "ubuntu-keyring.deb"
        with urllib.request.urlopen(_UBUNTU_KEYS, timeout=60) as answer:  # noqa: S310 - a constant address
            package.write_bytes(answer.read())
        subprocess.run(["dpkg-deb", "-x", str(package), str(cache / "keys")], check=True)
        command.append(f"--keyring={cache / 'keys/usr/share/keyrings/ubuntu-archive-keyring.gpg'}")
    print(f"making {system.name}", file=sys.stderr, flush=True)
    subprocess.run([*command, system.suite, str(root), system.mirror], check=True, stdout=sys.stderr)
    (root / _WRITABLE.strip("/")).mkdir()
    (root / ".made").touch()


def _fetch(systems: tuple[System, ...], state: Path) -> None:
    pythons = [word for system in systems for word in ("--python", system.python)]
    command = [_FLEETFIT, "server", "--state", state, "wheels", "fetch", *pythons, "--machine", "x86_64", "--json"]
    fetched = state / f".fetched-{len(systems)}"
    if not fetched.exists():
        subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
        fetched.touch()


def _model() -> bytes:
    weights = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def _inside(cache: Path, work: Path, suites: list[str]) -> None:
    """Without any network: a server, and each system in turn."""
    os.environ |= {
        "FLEETFIT_CONFIG_DIR": str(work / "config"),
        "FLEETFIT_HOST_LOCK": str(work / "lock"),
        "NO_COLOR": "1",
    }
    with _server(work / "state"):
        _said("models", "push", str(work / "model.onnx"), "--name", "product")
        found = [_tried(system, cache / system.suite, work) for system in SYSTEMS if system.suite in suites]
    (work / "found.json").write_text(json.dumps(found))


@contextmanager
def _server(state: Path) -> Iterator[None]:
    command = [str(_FLEETFIT), "server", "--state", str(state), "--json", "--listen", "127.0.0.1:7443"]
    command += ["--agent-listen", "127.0.0.1:7444"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()  # it says its addresses when it is ready
        yield
    finally:
        server.terminate()
        server.wait(30)


def _said(*words: str) -> Any:
    command = [str(_FLEETFIT), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _tried(system: System, root: Path, work: Path) -> dict[str, Any]:
    """What came of one system."""
    name = system.suite
    began = time.monotonic()
    installed = _paste(
        root, _said("devices", "enroll", "--name", name)["install"] + f" --dir {_FOLDER} --no-service --json"
    )
    seconds = time.monotonic() - began
    agent = subprocess.Popen(
        _in(root, f"{_FOLDER}/fleetfit agent"), stdout=subprocess.DEVNULL, stderr=(work / f"{name}.log").open("wb")
    )
    try:
        _wait_for(name, work / f"{name}.log")
        _said("bench", "product", "--on", name, "--wait")
        report = _said("report", "last")
    finally:
        # `unshare` passes no signal on but this one, as a board that loses its power does.
        agent.kill()
        agent.wait(30)
    (candidate, *_) = report["devices"][0]["candidates"]
    again = _paste(root, _said("devices", "enroll")["install"] + f" --dir {_FOLDER} --no-service --json")
    gone = _paste(root, f"python3 {_FOLDER}/install.py --uninstall --dir {_FOLDER} --json")
    left = sorted(str(path.relative_to(root)) for path in (root / _WRITABLE.strip("/")).rglob("*"))
    found = {
        "system": system.name,
        "python": _paste(root, "python3 -c 'import json, platform; print(json.dumps(platform.python_version()))'"),
        "glibc": _paste(root, "python3 -c 'import json, platform; print(json.dumps(platform.libc_ver()[1]))'"),
        "install_seconds": seconds,
        "findings": {finding["what"]: finding["verdict"] for finding in installed["findings"]},
        "measured": candidate["status"],
        "runtime": candidate["runtime"],
        "again_renewed": again["renewed"],
        "removed": gone["removed"],
        "left": left,
    }
    found["holds"] = candidate["status"] == "measured" and not again["renewed"] and gone["removed"] and not left
    print(f"{system.name}: {found}", file=sys.stderr, flush=True)
    return found


def _wait_for(device: str, log: Path) -> None:
    for _ in range(120):
        devices = _said("devices", "list")["devices"]
        if any(one["name"] == device and one["state"] == "online" for one in devices):
            return
        time.sleep(1)
    raise SystemExit(f"{device} never came online; its agent said:\n{log.read_text()}")


def _in(root: Path, line: str) -> list[str]:
    """The command that runs a line in a system, in processes of its own that see /proc and no variable of ours."""
    environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
    folder = f"{root}{_WRITABLE}"
    mounts = (
        f"mount --bind {root} {root}",
        f"mount --bind {folder} {folder}",
        f"mount -o remount,bind,ro {root}",
        f"mount -t proc proc {root}/proc",
        f"mount -t sysfs -o ro sys {root}/sys",
        f"mount --bind /dev {root}/dev",
    )
    chroot = shlex.join(["chroot", str(root), *environment, "sh", "-c", f"cd {_WRITABLE} && exec {line}"])
    return [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        f"{' && '.join(mounts)} && exec {chroot}",
    ]


def _paste(root: Path, line: str) -> Any:
    done = subprocess.run(_in(root, line), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{line} failed in {root.name}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    if os.environ.get(_INSIDE):
        _inside(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(run("roots", roots))
