"""Stopping the user's own service while this device measures, and starting it again, whatever happens in between.

Two executable files in `STATE/hooks/`, put there by the device's owner and never sent by anyone: `before-measuring` stops the
service, `after-measuring` starts it. `python -m fleetfit.agent.hooks STATE` is the process that runs both: it holds the pipe
to the agent, and when that closes, because the agent is done or has died, it starts the service. A mark on the disk outlives
even a loss of power.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Final

log = logging.getLogger("fleetfit.agent")

BEFORE: Final = "before-measuring"
AFTER: Final = "after-measuring"
# What the measuring child is told, so that the condition says it.
APPLICATION_VARIABLE: Final = "FLEETFIT_APPLICATION"
_MARK: Final = "service-is-stopped"
_HOOK_S: Final = 60.0
_TAIL_BYTES: Final = 300


class HookFailed(Exception):
    """The service could not be stopped; the text says why, and what to do."""


@asynccontextmanager
async def service_stopped(state: Path) -> AsyncIterator[bool]:
    """Stop the service for as long as this context lasts: True where there are hooks. Raises HookFailed.

    It is started again also where this process is killed in between.
    """
    if not (state / "hooks" / BEFORE).exists():
        yield False
        return
    guardian = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "fleetfit.agent.hooks",
        str(state.resolve()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert guardian.stdin is not None and guardian.stdout is not None  # noqa: S101 - asked for above
    try:
        said = (await guardian.stdout.readline()).decode().strip()
        if said != "ready":
            raise HookFailed(
                said or "the hooks' process ended without a word; see the agent's log, then resume the job"
            )
        log.info("the service is stopped (%s)", BEFORE)
        yield True
    finally:
        guardian.stdin.close()
        await asyncio.shield(_ended(guardian, state))


async def _ended(guardian: asyncio.subprocess.Process, state: Path) -> None:
    await guardian.wait()
    if (state / "hooks" / _MARK).exists():
        log.error("the hook %s has not started the service again; it is tried when the agent starts", AFTER)
    else:
        log.info("the service runs again (%s)", AFTER)


async def start_what_was_left(state: Path) -> None:
    """Start the service where an earlier life of this device ended while it was stopped."""
    if (state / "hooks" / _MARK).exists():
        command = [sys.executable, "-m", "fleetfit.agent.hooks", str(state.resolve()), "--after-only"]
        await _ended(await asyncio.create_subprocess_exec(*command, start_new_session=True), state)


def refusal(path: Path) -> str:
    """Why a hook is not run; empty where it may be. Whoever can write it could run anything as the agent."""
    for one in (path, path.parent):
        found = one.stat()
        if found.st_uid not in (0, os.getuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return (
                f"{one} belongs to another user or may be written by others; chown it to the agent's user, chmod go-w"
            )
    return "" if os.access(path, os.X_OK) else f"{path} is not executable; chmod +x it"


def run_hook(path: Path) -> str:
    """Run one hook: what went wrong, empty where nothing did."""
    try:
        if wrong := refusal(path):
            return wrong
        # A file, not a pipe: a service that the hook starts may keep it open for years.
        with tempfile.TemporaryFile() as out:
            with subprocess.Popen(  # noqa: S603 - the owner's own file
                [str(path)], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            ) as hook:
                try:
                    code = hook.wait(_HOOK_S)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(hook.pid, signal.SIGKILL)
                    return f"the hook {path.name} did not end within {_HOOK_S:.0f} s"
            out.seek(max(0, out.seek(0, os.SEEK_END) - _TAIL_BYTES))
            said = " ".join(out.read().decode(errors="replace").split())
    except OSError as error:
        return f"the hook {path.name} cannot be run: {error.strerror or error}"
    return f"the hook {path.name} ended with {code}{f' ({said})' if said else ''}" if code else ""


class _Stop(Exception):
    pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def main(arguments: list[str]) -> int:
    """Stop the service, wait until nobody holds the pipe, start it."""
    folder = Path(arguments[0]) / "hooks"
    mark = folder / _MARK
    with (folder / ".lock").open("w") as lock:
        # The one before may still be starting the service.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if "--after-only" not in arguments:
            # A manager that stops the agent stops this process too: then it starts the service at once.
            signal.signal(signal.SIGTERM, _stop)
            try:
                _hold(folder, mark)
            except _Stop:
                pass
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wrong = run_hook(folder / AFTER) if mark.exists() else ""
        if wrong:
            print(wrong, file=sys.stderr, flush=True)
            return 1
        mark.unlink(missing_ok=True)
    return 0


def _hold(folder: Path, mark: Path) -> None:
    # Before anything is stopped: what starts it again must work.
    missing = (
        ""
        if (folder / AFTER).exists()
        else f"there is a hook {BEFORE} and none {AFTER}: the service would stay stopped"
    )
    if wrong := missing or refusal(folder / AFTER):
        print(f"{wrong}; mend it on the device, then resume the job", flush=True)
        return
    mark.touch()
    wrong = run_hook(folder / BEFORE)
    if wrong:
        print(f"{wrong}; mend it on the device, then resume the job", flush=True)
        return
    with contextlib.suppress(BrokenPipeError):
        print("ready", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
