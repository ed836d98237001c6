from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Ended:
    """How a run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        """The last line of standard output, which with --json is an object."""
        found: dict[str, object] = json.loads(self.out.splitlines()[-1])
        return found


@dataclass
class ServerProcess:
    """A real `fleetfit server` with a folder of its own."""

    folder: Path
    listen: str = "127.0.0.1:0"
    token: str = ""
    agent_listen: str = ""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """For whoever acts as the same user on the same machine."""
        config = {
            "FLEETFIT_CONFIG_DIR": str(self.folder / "config"),
            "FLEETFIT_HOST_LOCK": str(self.folder / "host.lock"),
        }
        return (
            {k: v for k, v in os.environ.items() if k not in ("FLEETFIT_SERVER", "FLEETFIT_TOKEN")}
            | config
            | {"COLUMNS": "80"}
        )

    def start(self) -> None:
        command = [sys.executable, "-m", "fleetfit", "server", "--json", "--method", "quick"]
        command += ["--listen", self.listen, "--agent-listen", "127.0.0.1:0", "--state", str(self.folder / "state")]
        log = (self.folder / "server.log").open("a")
        with log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server did not start: {(self.folder / 'server.log').read_text()[-2000:]}"
        ready = json.loads(line)
        self.listen, self.agent_listen = ready["listen"], ready["agent_listen"]
        self.token = ready.get("token", self.token)

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(timeout=20)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def run(self, *words: str, cwd: Path | None = None, **environment: str) -> Ended:
        """Run `fleetfit WORDS` as the server's user."""
        done = subprocess.run(
            [sys.executable, "-m", "fleetfit", *words],
            env=self.environment | environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=90,
        )
        return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def make_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], ServerProcess]]:
    """Starts servers, and stops them at the end of the session."""
    started: list[ServerProcess] = []

    def make() -> ServerProcess:
        server = ServerProcess(tmp_path_factory.mktemp("server"))
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(make_server: Callable[[], ServerProcess]) -> ServerProcess:
    """One server for all tests that leave it as it was."""
    return make_server()
