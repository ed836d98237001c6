"""The resident agent: `python -m fleetfit.agent --state DIR`, what `fleetfit agent` becomes once enrolled.

Imports the standard library, psutil, grpc and the protocol, nothing else (a test reads `sys.modules`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fleetfit.agent.caps import apply_caps
from fleetfit.agent.disk import disk_full, give_temporary_folder, is_full
from fleetfit.agent.hooks import APPLICATION_VARIABLE, start_what_was_left
from fleetfit.agent.identity import require_identity
from fleetfit.agent.session import Agent
from fleetfit.core.children import ChildOutcome, Limits, run_child
from fleetfit.core.errors import Conflict, ExhaustedResource, FleetfitError, TimedOut, UnsupportedHere
from fleetfit.proto.v1 import snapshot_pb2

log = logging.getLogger("fleetfit.agent")
# A probe takes seconds; on a small board, or an emulated one, whose runtimes are many, up to a minute.
_TOGETHER_S: Final = 120.0
# For one runtime; and for all of them one after another.
_EACH_S: Final = 60.0
_APART_S: Final = 900.0


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()})


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; the exit code is 0 for an ordinary end, 1 where it cannot go on."""
    parser = argparse.ArgumentParser(prog="python -m fleetfit.agent")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache-mb", type=int, default=2048)
    parser.add_argument("--cores", default="")
    parser.add_argument("--memory-mb", type=int, default=0)
    parser.add_argument("--beside", default="")
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if options.json else logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        apply_caps(options.cores, options.memory_mb)
        if options.beside:
            os.environ[APPLICATION_VARIABLE] = f"beside {options.beside}"
        with _alone(options.state):
            give_temporary_folder(options.state / "tmp", anew=True)
            asyncio.run(_serve(options))
    except FleetfitError as error:
        log.error("%s", error.message)
        return 1
    except OSError as error:
        said = disk_full(options.state) if is_full(error) else f"{error.filename or options.state}: {error.strerror}"
        log.error("%s", said)
        return 1
    except asyncio.CancelledError:
        pass
    return 0


async def _serve(options: argparse.Namespace) -> None:
    identity = require_identity(options.state)

    async def probe() -> snapshot_pb2.DeviceSnapshot:
        return await probe_device(options.state, threads=options.threads, emulated=options.emulated)

    agent = Agent(identity, options.state, probe, cache_bytes=options.cache_mb << 20, once=options.once)
    await start_what_was_left(options.state)
    serving = asyncio.create_task(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    await serving


async def probe_device(state: Path, *, threads: int, emulated: bool) -> snapshot_pb2.DeviceSnapshot:
    """What this device is, found out in a child: reading it imports inference runtimes.

    Where that child crashes or hangs, each runtime is asked in a child of its own, so that all but the one to blame can be
    used. Raises TimedOut and ExhaustedResource for what may be better later, UnsupportedHere for the rest.
    """
    out, apart = state / "snapshot.pb", state / "probe"
    arguments = ["-m", "fleetfit.agent.probe", "--disk", str(state)]
    if threads:
        arguments += ["--threads", str(threads)]
    if emulated:
        arguments.append("--emulated")
    try:
        outcome = await run_child(arguments, Limits(wall_s=_TOGETHER_S, expendable=True), stdout=out)
        if outcome.kind != "ok" and not outcome.met_full_disk:
            log.warning(
                "looking at this device ended as %s; each runtime is now asked in a process of its own", outcome.kind
            )
            shutil.rmtree(apart, ignore_errors=True)
            apart.mkdir()
            more = ["--apart", str(apart), "--limit-s", str(_EACH_S)]
            outcome = await run_child([*arguments, *more], Limits(wall_s=_APART_S), stdout=out)
            shutil.rmtree(apart, ignore_errors=True)
    except OSError as error:
        if not is_full(error):
            raise
        raise disk_full(state) from error
    if outcome.kind != "ok":
        raise _unknown_device(state, outcome)
    snapshot = snapshot_pb2.DeviceSnapshot()
    snapshot.ParseFromString(out.read_bytes())
    return snapshot


def _unknown_device(state: Path, outcome: ChildOutcome) -> FleetfitError:
    if outcome.met_full_disk:
        return disk_full(state)
    last = (outcome.stderr_tail.strip().splitlines() or ["it said nothing"])[-1]
    kinds: dict[str, type[FleetfitError]] = {"timed_out": TimedOut, "out_of_memory": ExhaustedResource}
    return kinds.get(outcome.kind, UnsupportedHere)(
        f"this device cannot be probed ({outcome.kind}: {last}); run `fleetfit agent doctor`"
    )


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One agent per state folder. Raises Conflict where another one runs."""
    require_identity(state)
    with (state / "agent.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(
                f"another agent already works in {state}; stop it, or give this one its own folder with --state"
            ) from error
        yield


if __name__ == "__main__":
    sys.exit(main())
