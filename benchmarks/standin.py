"""A stand-in for a Raspberry Pi 4: `python -m benchmarks.standin ARGUMENTS...` runs `fleetfit ARGUMENTS...` in it.

qemu-user runs an arm64 Debian's Python with the wheels that a board would get, below a root that holds the files by which
a board says what it is. It needs no privilege and leaves nothing behind but `.cache/standin/` in this checkout. Its timings mean
nothing, and the agent in it finds out by itself that it is emulated.

What is needed: qemu-aarch64-static and mmdebstrap (`make ci-deps`), and once a Debian mirror and a package index.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from functools import cache
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from fleetfit.core.errors import FleetfitError, Unavailable, UnsupportedHere
from fleetfit.server.install.own_wheel import own_wheel
from tests.agent.probe.trees import RASPBERRY_PI_4

_REPOSITORY: Final = Path(__file__).resolve().parent.parent
_CACHE: Final = _REPOSITORY / ".cache" / "standin"
_EMULATOR: Final = "qemu-aarch64-static"
_MAKER: Final = "mmdebstrap"
# Raspberry Pi OS from Bookworm on is this Debian with this Python (device_profiles/profiles/raspberry-pi-4.yaml).
_SUITE: Final = "bookworm"
_PYTHON: Final = (3, 11)
_PACKAGES: Final = "python3,libc6,libstdc++6,libgomp1,ca-certificates"
RUNTIMES: Final = ("onnxruntime", "ncnn")
_PLATFORMS: Final = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_PROCESSOR: Final = "cortex-a72"

# What the machine that emulates says itself: how busy it is, and its own kernel.
_HOSTS_OWN: Final = ("/fleetfit/", "/proc/loadavg", "/proc/pressure/", "/proc/stat", "/proc/sys/", "/etc/os-release")
_CORES: Final = 4
# What libraries read beside our probes: psutil the memory, ONNX Runtime the processors. The identification register is that
# of a Cortex-A72: implementer 0x41, part 0xd08.
_MORE: Final[Mapping[str, str]] = {
    "/proc/meminfo": RASPBERRY_PI_4["/proc/meminfo"] + "MemFree: 3200000 kB\nBuffers: 40000 kB\nCached: 300000 kB\n",
    **{f"/sys/devices/system/cpu/{name}": f"0-{_CORES - 1}\n" for name in ("possible", "present", "online")},
    "/sys/devices/system/cpu/kernel_max": f"{_CORES - 1}\n",
    **{f"/sys/devices/system/cpu/cpu{n}/regs/identification/midr_el1": "0x00000000410fd083\n" for n in range(_CORES)},
    # A board has none of these; a file that is missing here would be looked for on the machine that emulates.
    **{f"/sys/devices/virtual/dmi/id/{name}": "" for name in ("sys_vendor", "product_name", "board_asset_tag")},
    "/proc/driver/.keep": "",
    "/etc/nv_tegra_release": "",
}


@dataclass(frozen=True)
class StandIn:
    """The device, ready to run. `python` behaves as a virtual environment's: children are started by its `sys.executable`."""

    python: Path
    root: Path

    def command(self, *arguments: str) -> list[str]:
        """What runs `fleetfit ARGUMENTS...` on the device."""
        return [str(self.python), "-m", "fleetfit", *arguments]


def stand_in() -> StandIn:
    """The stand-in for this checkout's code, made where it is not there yet.

    Raises UnsupportedHere where a program is missing, Unavailable where Debian or the package index cannot be reached.
    """
    for program in (_EMULATOR, _MAKER):
        if shutil.which(program) is None:
            raise UnsupportedHere(f"there is no {program} here for the emulated board; run `make ci-deps` as root")
    with _alone():
        folder = _CACHE / _key()
        if not folder.exists():
            _tell("making an arm64 Debian and fetching wheels for it, once ...")
            # What was begun and cut off, and what was made from other versions.
            for old in _CACHE.glob("*/"):
                shutil.rmtree(old)
            _make(_CACHE / "making")
            (_CACHE / "making").rename(folder)
        return _ready(folder)


def _make(folder: Path) -> None:
    folder.mkdir()
    _run(
        [_MAKER, "--quiet", "--variant=extract", "--arch=arm64", f"--include={_PACKAGES}", _SUITE, str(folder / "root")]
    )
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", ".".join(map(str, _PYTHON))]
    for abi in (f"cp{_PYTHON[0]}{_PYTHON[1]}", "abi3", "none"):
        command += ["--abi", abi]
    for platform in _PLATFORMS:
        command += ["--platform", f"{platform}_aarch64"]
    command += ["--constraint", str(_REPOSITORY / "constraints.txt"), "--target", str(_site(folder))]
    _run([*command, *_requirements()])


def _ready(folder: Path) -> StandIn:
    """Whatever is cheap is made anew each time, so that it follows this checkout."""
    root, device = folder / "root", folder / "device"
    for path, text in ({p: t for p, t in RASPBERRY_PI_4.items() if not p.startswith(_HOSTS_OWN)} | _MORE).items():
        _write(root / path.lstrip("/"), text.encode())
    site = _site(folder)
    ours = _own_files()
    for old in site.glob("fleetfit*/**/*"):
        if old.is_file() and old.relative_to(site).as_posix() not in ours:
            old.unlink()
    for name, content in ours.items():
        _write(site / name, content)
    config = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {_dotted()}\n"
    _write(device / "pyvenv.cfg", config.encode())
    python = device / "bin" / "python3"
    # Children are started by the name in argv[0]. What the guest compiles must not land where the emulating machine's own
    # Python keeps it: a file that is not below the root is written outside of it.
    words = [_EMULATOR, "-cpu", _PROCESSOR, "-L", str(root)]
    launcher = (
        f"#!/bin/sh\nexport PYTHONPYCACHEPREFIX={shlex.quote(str(folder / 'compiled'))}\n"
        f'exec {shlex.join(words)} -0 "$0" {shlex.quote(f"{root}/usr/bin/python{_dotted()}")} "$@"\n'
    )
    _write(python, launcher.encode())
    python.chmod(0o755)
    return StandIn(python, root)


def _site(folder: Path) -> Path:
    return folder / "device" / "lib" / f"python{_dotted()}" / "site-packages"


def _dotted() -> str:
    return ".".join(map(str, _PYTHON))


@cache
def _own_files() -> dict[str, bytes]:
    """By path below site-packages: the wheel that a board gets."""
    with zipfile.ZipFile(io.BytesIO(own_wheel()[1])) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def _requirements() -> list[str]:
    """What an agent with these runtimes installs."""
    content = next(content for name, content in _own_files().items() if name.endswith("/METADATA"))
    found = [Requirement(line) for line in Parser().parsestr(content.decode()).get_all("Requires-Dist", [])]
    asked = ("", *RUNTIMES)
    wanted = [one for one in found if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in asked)]
    return sorted({f"{one.name}{one.specifier}" for one in wanted})


def _key() -> str:
    """Names what the root and the wheels are made from."""
    parts = (_SUITE, _PACKAGES, _PYTHON, _PLATFORMS, _requirements(), (_REPOSITORY / "constraints.txt").read_text())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@contextmanager
def _alone() -> Iterator[None]:
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: bytes) -> None:
    # Whole or not at all, and only where it changes: an agent may be running from here.
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Unavailable(f"{Path(command[0]).name} could not make the emulated board ({last}); check the network")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Become the command in the stand-in."""
    try:
        command = stand_in().command(*sys.argv[1:])
    except FleetfitError as error:
        _tell(f"benchmarks.standin: {error.message}")
        return 1
    os.execv(command[0], command)  # noqa: S606 - our own launcher, no shell


if __name__ == "__main__":
    sys.exit(main())
