"""A real fleet for system tests: server, agents and command line as processes, over real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

READY_S = 60.0


@dataclass
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, which with `--json` is the command's object."""
        return json.loads(self.out.strip().splitlines()[-1])

    @property
    def text(self) -> str:
        return self.out + self.err


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = READY_S) -> Any:
    """Poll until `condition` gives something true; a condition that raises is not true yet."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            value = condition()
            if value:
                return value
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")


@dataclass
class Fleet:
    """One server with its agents, each with folders of their own below `root`."""

    root: Path
    server_arguments: tuple[str, ...] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    address: str = "127.0.0.1:0"
    agent_address: str = "127.0.0.1:0"
    threads: dict[str, int] = field(default_factory=dict)
    surroundings: dict[str, dict[str, str]] = field(default_factory=dict)
    """What single processes find in their environment besides, by name; with the name "" all of them."""

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "FLEETFIT_CONFIG_DIR": str(self.root / "config"),
            "FLEETFIT_HOST_LOCK": str(self.root / "host.lock"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
            "NO_COLOR": "1",
        }
        kept = {k: v for k, v in os.environ.items() if k not in ("FLEETFIT_SERVER", "FLEETFIT_TOKEN")}
        return kept | own | self.surroundings.get("", {})

    def start_server(self) -> None:
        """Start the server, or start it again on the same state and the same ports."""
        # Later arguments win: tests of health checks ask for them.
        arguments = ["server", "--state", str(self.root / "state"), "--json", "--health-every", "0"]
        arguments += ["--listen", self.address, "--agent-listen", self.agent_address, *self.server_arguments]
        addresses = self.root / "state" / "addresses.json"
        addresses.unlink(missing_ok=True)
        process = self._spawn("server", ["-m", "fleetfit", *arguments])

        def ready() -> Any:
            assert process.poll() is None, f"the server ended: {self.log('server')}"
            return json.loads(addresses.read_text())

        said = wait_for(ready, "the server's addresses")
        self.address, self.agent_address = said["listen"], said["agent_listen"]

    def start_agent(
        self, name: str, threads: int = 1, *more: str, python: Path | None = None, ready_s: float = READY_S
    ) -> None:
        """Start an agent, by another device's Python where one is given; the first time it enrols."""
        self.threads[name] = threads
        state = self.root / "agents" / name
        arguments = ["-m", "fleetfit", "agent", "--state", str(state), "--threads", str(threads), "--json", *more]
        if not (state / "identity").exists():
            token = self.run("devices", "enroll", "--name", name, "--json").json["token"]
            arguments += ["--server", self.address, "--token", token]
        # The log keeps what earlier lives said.
        before = self.log(name).count("connected to")
        process = self._spawn(name, arguments, python)

        def connected() -> bool:
            assert process.poll() is None, f"the agent {name} ended: {self.log(name)}"
            return self.log(name).count("connected to") > before

        wait_for(connected, f"agent {name} to connect", ready_s)

    def enrol(self, name: str, agent_address: str = "") -> Path:
        """Enrol a device without starting its agent; it will connect to `agent_address`, such as a link's. Its folder."""
        state = self.root / "agents" / name
        token = self.run("devices", "enroll", "--name", name, "--json").json["token"]
        self.run("agent", "--state", str(state), "enroll", "--server", self.address, "--token", token)
        file = state / "identity" / "identity.json"
        facts = json.loads(file.read_text())
        file.write_text(json.dumps(facts | ({"agent_address": agent_address} if agent_address else {})))
        return state

    def run(
        self,
        *arguments: str,
        timeout_s: float = 110,
        code: int | None = 0,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Said:
        """Run one `fleetfit` command to its end. `code` is the exit code to insist on; None takes any."""
        done = subprocess.run(
            [sys.executable, "-m", "fleetfit", *arguments],
            env=self.environment | {"FLEETFIT_SERVER": ""} | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd or self.root,
        )
        said = Said(done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in said.text, said.text
        if code is not None:
            assert said.code == code, f"{arguments} ended with {said.code}: {said.text}\n{self.log('server')[-3000:]}"
        return said

    def begin(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one `fleetfit` command that goes on beside the test; `log(name)` has what it says."""
        return self._spawn(name, ["-m", "fleetfit", *arguments])

    def relatives(self) -> list[psutil.Process]:
        """All living processes that were started for this fleet, orphans too: they carry its environment."""
        mark = str(self.root / "host.lock")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("FLEETFIT_HOST_LOCK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self, name: str) -> None:
        """kill -9, and wait until it is gone."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(30)

    def stop(self, name: str) -> int:
        """SIGTERM, and the exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise AssertionError(f"{name} did not end within 20 s of SIGTERM: {self.log(name)[-2000:]}") from None

    def log(self, name: str) -> str:
        """Everything that a process has said so far, over all its lives."""
        path = self.root / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self) -> None:
        """End everything, the server last, and what is left of children."""
        for name in sorted(self.processes, key=lambda name: name == "server"):
            with contextlib.suppress(AssertionError):
                self.stop(name)
        _, alive = psutil.wait_procs(self.relatives(), timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _spawn(self, name: str, arguments: list[str], python: Path | None = None) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(python or sys.executable), *arguments],
                env=self.environment | self.surroundings.get(name, {}),
                stdout=log,
                stderr=log,
                cwd=self.root,
            )
        self.processes[name] = process
        return process


@dataclass
class Undisturbed:
    """Three jobs on a fleet that nobody kills: what other runs are compared with."""

    fleet: Fleet
    jobs: dict[str, str] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)

    def start(self, goods: Path) -> None:
        """Ask for all jobs."""
        from . import workload

        self.fleet.start_server()
        for name in ("left", "right"):
            self.fleet.start_agent(name)
        self.jobs = workload.start_jobs(self.fleet, goods)

    def finish(self) -> dict[str, Any]:
        """Wait for all jobs and end the fleet; the reports by model. Again and again gives the same."""
        from . import workload

        if not self.reports:
            self.reports = workload.finish_jobs(self.fleet, self.jobs)
            self.fleet.close()
        return self.reports


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Make fleets that are ended with the test."""
    made: list[Fleet] = []

    def make(*server_arguments: str, name: str = "fleet", state: Path | None = None) -> Fleet:
        root = tmp_path / name
        root.mkdir()
        if state is not None:
            shutil.copytree(state, root / "state")
        fleet = Fleet(root, server_arguments)
        made.append(fleet)
        fleet.start_server()
        return fleet

    yield make
    for fleet in made:
        fleet.close()


@pytest.fixture(scope="module")
def module_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fleet]]:
    """Make fleets that are ended with the module."""
    made: list[Fleet] = []

    def make(*server_arguments: str) -> Fleet:
        fleet = Fleet(tmp_path_factory.mktemp("fleet"), server_arguments)
        made.append(fleet)
        fleet.start_server()
        return fleet

    yield make
    for fleet in made:
        fleet.close()


@pytest.fixture(scope="session")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data and recipes of `workload`, and `state`: a server's folder in which they are registered.

    Registering takes as long as a small job; a fleet that starts on a copy of the folder has it behind it.
    """
    from . import workload

    folder = tmp_path_factory.mktemp("goods")
    workload.make_goods(folder)
    fleet = Fleet(folder)
    try:
        fleet.start_server()
        workload.push_goods(fleet, folder)
        assert fleet.stop("server") == 0
    finally:
        fleet.close()
    return folder


@pytest.fixture(scope="session")
def undisturbed(goods: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """Two agents at work on three jobs; it goes on beside the test that asked first, on the second core."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(goods / "state", root / "state")
    running = Undisturbed(Fleet(root, ("--method", "quick")))
    try:
        running.start(goods)
        yield running
    finally:
        running.fleet.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `badfiles`."""
    from . import badfiles

    return badfiles.make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def standing(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A server with the device `pi`, the model `net` and the dataset `data`, for tests that leave these as they were."""
    fleet = Fleet(tmp_path_factory.mktemp("standing"), ("--method", "quick", "--device-wait", "8s"))
    try:
        fleet.start_server()
        fleet.start_agent("pi")
        fleet.run("models", "push", str(files / "net.onnx"))
        fleet.run("data", "push", str(files / "data.npz"), "--model", "net")
        yield fleet
    finally:
        fleet.close()
