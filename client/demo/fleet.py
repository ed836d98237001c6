"""The demo's server and agents: the same processes that a user starts, on this machine, ended with the demo."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from fleetfit.client.client import Client, connect
from fleetfit.core.errors import InternalError

_READY_S: Final = 90.0
_STOP_S: Final = 20.0
# A fleet of some minutes has no history.
_NO_CHECKS: Final = ("--health-every", "0")
_PORTS: Final = ("--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0")


class DemoFleet:
    """One server and agents with all their files below `folder`; to be used in a `with` statement."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._environment = os.environ | {"FLEETFIT_CONFIG_DIR": str(folder / "config")}
        for name in ("FLEETFIT_SERVER", "FLEETFIT_TOKEN"):
            self._environment.pop(name, None)

    def __enter__(self) -> DemoFleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_server(self, method: str) -> Client:
        """Start the server, which measures by that method; a client of it, to be closed by the caller.

        Raises InternalError where it does not start.
        """
        addresses = self._folder / "state" / "addresses.json"
        self._start(
            "server",
            ["server", "--state", str(self._folder / "state"), "--method", method, "--json", *_PORTS, *_NO_CHECKS],
        )
        found = self._wait("server", lambda: json.loads(addresses.read_text()))
        # The client of this process finds the server's credential where the server leaves it.
        with _environment(self._environment):
            return connect(str(found["listen"]))

    def start_agent(self, client: Client, name: str, threads: int) -> None:
        """Enrol an agent and start it; returns when the server sees it online."""
        token = client.enrolment_token(name).token
        state = self._folder / "agents" / name
        arguments = ["agent", "--server", client.address, "--token", token, "--name", name, "--state", str(state)]
        self._start(name, [*arguments, "--threads", str(threads), "--json"])
        self._wait(name, lambda: any(d.name == name and d.HasField("snapshot") for d in client.devices()))

    def stop(self) -> None:
        """End everything, the server last."""
        for _, process in reversed(self._processes):
            process.terminate()
        for _, process in reversed(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()
            process.wait()
        self._processes.clear()

    def _start(self, name: str, arguments: list[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "fleetfit", *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which then ends them in order.
                start_new_session=True,
            )
        self._processes.append((name, process))

    def _wait(self, name: str, condition: Any) -> Any:
        process = next(process for known, process in self._processes if known == name)
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                if found := condition():
                    return found
            time.sleep(0.1)
        log = self._folder / f"{name}.log"
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise InternalError(f"the demo's {name} did not start ({last[:300]}); see {log}")


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
