"""Full disks, the server's and a device's: said in one sentence, passed when there is room again, nothing half done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from .conftest import Fleet, wait_for
from .refusals import books, check_log, check_sentence, client_of, refused, refusing

pytestmark = pytest.mark.system
MakeFleet = Callable[..., Fleet]


class Disk:
    """A file system in memory that can be filled up without writing to it: it is made as small as what it holds."""

    def __init__(self, path: Path, megabytes: float) -> None:
        self.path, self._bytes = path, int(megabytes * 1e6)
        path.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", f"size={self._bytes}", "tmpfs", str(path)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    def fill(self) -> None:
        facts = os.statvfs(self.path)
        # A size of nothing would mean no limit.
        self._resize(max((facts.f_blocks - facts.f_bfree) * facts.f_frsize, 4096))

    def make_room(self) -> None:
        self._resize(self._bytes)

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str, float], Disk]]:
    """Mounts disks below the test's folder; asked for before `make_fleet`, so that fleets end first."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    made: list[Disk] = []

    def make(name: str, megabytes: float) -> Disk:
        made.append(Disk(tmp_path / name, megabytes))
        return made[-1]

    yield make
    for disk in made:
        disk.close()


def test_a_server_whose_disk_is_full_says_so_serves_on_and_recovers(
    make_disk: Callable[[str, float], Disk], files: Path, tmp_path: Path
) -> None:
    # Of which 268 MB are always kept free.
    disk = make_disk("fleet/state", 280)
    fleet = Fleet(tmp_path / "fleet", ("--method", "quick"))
    try:
        fleet.start_server()
        fleet.start_agent("pi")
        fleet.run("models", "push", str(files / "net.onnx"))
        # Too large for what is left.
        large = tmp_path / "large.npz"
        np.savez(large, features=np.zeros((250_000, 16), np.float32), targets=np.zeros(250_000, np.int64))
        with client_of(fleet) as client:
            before = books(client)
            says = "the server has no room for .* MB .*; make room in .*/state/artifacts and try again"
            refused(fleet, "data", "push", str(large), error="RESOURCE_EXHAUSTED", says=says)
            with refusing("RESOURCE_EXHAUSTED", says):
                client.push_dataset(large)
            assert books(client) == before

            disk.fill()
            full = "the server's disk is full; make room in .*/state and try again"
            refused(fleet, "data", "push", str(files / "data.npz"), error="RESOURCE_EXHAUSTED", says=says)
            refused(fleet, "bench", "net", "--on", "pi", error="RESOURCE_EXHAUSTED", says=full)
            refused(fleet, "devices", "enroll", error="RESOURCE_EXHAUSTED", says=full)
            with refusing("RESOURCE_EXHAUSTED", full):
                client.bench("net", on=["pi"])
            assert books(client) == before
            assert "net" in fleet.run("models", "list").out

            # A device that comes meanwhile waits with the server.
            fleet.stop("pi")
            state = fleet.root / "agents" / "pi"
            process = fleet._spawn("pi", ["-m", "fleetfit", "agent", "--state", str(state), "--json"])
            wait_for(lambda: "disk is full; make room" in fleet.log("pi"), "the device to say why it waits")
            disk.make_room()
            wait_for(lambda: fleet.log("pi").count("connected to") > 1, "the device to connect")
            assert process.poll() is None
            said = fleet.run("bench", "net", "--on", "pi", "--wait", "--json")
            assert said.json["report"]["devices"][0]["candidates"][0]["status"] == "measured"
        for name in ("pi", "server"):
            check_log(fleet, name)
    finally:
        fleet.close()


def test_a_server_does_not_start_on_a_full_disk(make_disk: Callable[[str, float], Disk], tmp_path: Path) -> None:
    disk = make_disk("small", 0.04)
    fleet = Fleet(tmp_path)
    says = "the disk of .* is full; make room there, or name a folder on another disk with --state"
    ports = ("--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0")
    refused(fleet, "server", "--state", str(disk.path), *ports, error="RESOURCE_EXHAUSTED", says=says)


def test_a_device_whose_disk_is_full_says_so_works_on_and_recovers(
    make_disk: Callable[[str, float], Disk], make_fleet: MakeFleet, files: Path, tmp_path: Path
) -> None:
    # Of which 67 MB are always kept free.
    disk = make_disk("device", 90)
    fleet = make_fleet("--method", "quick")
    (fleet.root / "agents").mkdir()
    (fleet.root / "agents" / "small").symlink_to(disk.path)
    # A token works once, so it is not spent on a device that cannot keep its identity.
    token = fleet.run("devices", "enroll", "--name", "small", "--json").json["token"]
    disk.fill()
    says = "the device's disk is full; make room in .*, or start the agent with --state on a larger disk"
    wanted = ("agent", "--server", fleet.address, "--token", token, "--state", str(disk.path))
    refused(fleet, *wanted, error="RESOURCE_EXHAUSTED", says=says)
    assert fleet.run("devices", "list", "--json").json["devices"] == []
    disk.make_room()
    fleet._spawn("small", ["-m", "fleetfit", *wanted, "--json"])
    wait_for(lambda: "connected to" in fleet.log("small"), "the device to connect")
    fleet.run("models", "push", str(files / "net.onnx"))

    def bench() -> tuple[str, list[str]]:
        said = fleet.run("bench", "net", "--on", "small", "--wait", "--json")
        (candidate,) = said.json["report"]["devices"][0]["candidates"]
        return candidate["status"], candidate["rejected_because"]

    assert bench()[0] == "measured"
    disk.fill()
    status, (reason,) = bench()
    assert status == "failed" and "disk is full" in reason and "make room" in reason
    check_sentence(reason)
    assert fleet.run("devices", "list", "--json").json["devices"][0]["state"] == "online"
    disk.make_room()
    fleet.run("jobs", "resume", "last")
    fleet.run("jobs", "watch", "last")
    (device,) = fleet.run("report", "last", "--json").json["devices"]
    assert device["candidates"][0]["status"] == "measured"
    for name in ("small", "server"):
        check_log(fleet, name)
