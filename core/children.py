"""Child processes with limits: how anything that may crash, hang or eat memory is run.

A child is started by `run_child`, which watches the clock and names the way it ended. The child itself calls
`limit_self` first of all: resource limits and a death signal are set there, because setting them between fork and exec
is not safe in a process that runs gRPC's threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from fleetfit.core.forks import forks, private_bytes
from fleetfit.core.stragglers import MARK_VARIABLE, kill_marked, mark_below
from fleetfit.core.waiting import within

_LIMITS_VARIABLE = "FLEETFIT_CHILD_LIMITS"
# The folder of engines that runtimes build on a device, which outlives tasks: an agent names one of its own to its children.
ENGINES_VARIABLE = "FLEETFIT_ENGINES"
_PR_SET_PDEATHSIG = 1
# A child that met its memory limit says so with this exit code; the kernel's own killing is seen as SIGKILL.
EXIT_OUT_OF_MEMORY = 86
_STDERR_KEPT_BYTES = 16_384
_PIPE_BYTES = 65_536
_GUARD_S = 0.1
# Looking for them costs more than a look at the child.
_FORKS_EVERY = 5
# What is asked for last, and denied, is seldom more than the rest.
_NEAR = 0.9


@dataclass(frozen=True)
class Limits:
    """What a child may use. None is no limit.

    `memory_bytes` limits the data segment (heap and private mappings), not the address space: a process with gRPC or an
    inference runtime maps far more than it uses.
    """

    memory_bytes: int | None = None
    cpu_s: int | None = None
    file_bytes: int | None = None
    wall_s: float | None = None
    expendable: bool = False
    """Where memory runs out the kernel takes it first, and before that the parent does, when what it holds passes
    `memory_bytes`: shared memory counts then too, and what its forks hold, which no resource limit does."""


@dataclass(frozen=True)
class ChildOutcome:
    """How a child ended: `ok`, `failed` (it said so), `crashed`, `out_of_memory`, `timed_out` or `cancelled`."""

    kind: str
    exit_code: int
    stderr_tail: str = field(repr=False, default="")

    @property
    def met_full_disk(self) -> bool:
        """Whether it said that the disk is full."""
        return "No space left on device" in self.stderr_tail


def limit_self() -> None:
    """Apply the limits that the parent asked for. To be called by a child before it imports anything heavy."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    expected = os.environ.get("FLEETFIT_CHILD_PARENT")
    if expected is not None and int(expected) not in (parent, os.getppid()):
        os._exit(1)  # The parent died before the death signal was set.
    text = os.environ.get(_LIMITS_VARIABLE)
    if not text:
        return
    wanted = Limits(**json.loads(text))
    if wanted.expendable:
        # Raising one's own score needs no privilege. Source: proc(5), /proc/pid/oom_score_adj.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    for which, value in (
        (resource.RLIMIT_DATA, wanted.memory_bytes),
        (resource.RLIMIT_CPU, wanted.cpu_s),
        (resource.RLIMIT_FSIZE, wanted.file_bytes),
    ):
        if value is not None:
            _, hard = resource.getrlimit(which)
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def keep_stdout() -> BinaryIO:
    """Standard output for a child's answer alone: what libraries print from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def child_environment(limits: Limits, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment to start a limited child with."""
    environment = dict(os.environ)
    environment.update(extra or {})
    environment[_LIMITS_VARIABLE] = json.dumps(asdict(limits))
    environment["FLEETFIT_CHILD_PARENT"] = str(os.getpid())
    return environment


def classify(return_code: int) -> str:
    """The kind of outcome that a return code (negative: a signal) stands for."""
    if return_code == 0:
        return "ok"
    if return_code == EXIT_OUT_OF_MEMORY or return_code == -signal.SIGKILL:
        return "out_of_memory"
    if return_code == -signal.SIGXCPU:
        return "timed_out"
    return "failed" if return_code > 0 else "crashed"


def held_bytes(pid: int) -> int:
    """Memory that a process holds and nobody can take from it: private and shared, without files. 0 where it is gone."""
    return _held(_sizes(pid))


def _held(sizes: Mapping[str, int]) -> int:
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)


def _sizes(pid: int) -> dict[str, int]:
    """In bytes, what proc(5) tells of a process in /proc/pid/status; nothing where it is gone."""
    found = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssShmem", "VmData"):
                found[name] = int(value.split()[0]) * 1024
    return found


class _Guard:
    """Looks at a child that has a memory limit: `at_limit` is whether it was about to meet it at the last look."""

    def __init__(self, pid: int, limits: Limits) -> None:
        self._pid, self._limits = pid, limits
        self.at_limit = False

    async def watch(self) -> None:
        """Until cancelled, or until an expendable child holds more than it may, which is then killed."""
        limit = self._limits.memory_bytes
        looks, of_forks = 0, 0
        while limit is not None:
            await asyncio.sleep(_GUARD_S)
            sizes = _sizes(self._pid)
            if "VmData" in sizes:
                self.at_limit = sizes["VmData"] > _NEAR * limit
            looks += 1
            if self._limits.expendable and looks % _FORKS_EVERY == 0:
                of_forks = sum(map(private_bytes, forks(self._pid)))
            if self._limits.expendable and _held(sizes) + of_forks > limit:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)
                return

    def kind(self, code: int) -> str:
        """What the return code stands for. Native code that gets no memory may crash instead of saying so."""
        kind = classify(code)
        return "out_of_memory" if kind == "crashed" and self.at_limit else kind


class _StandardError:
    """The end of what a child says, to be written to `pipe`.

    Read as it comes and never waited for: what the child started may hold the pipe for years.
    """

    def __init__(self) -> None:
        self._source, self.pipe = os.pipe()
        os.set_blocking(self._source, False)
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._source, self._take)

    def _take(self) -> bool:
        try:
            chunk = os.read(self._source, _PIPE_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._source)
        self._kept.extend(chunk)
        del self._kept[:-_STDERR_KEPT_BYTES]
        return bool(chunk)

    def close(self) -> str:
        """What is still in the pipe, and all that was kept."""
        # Once more than a pipe holds: somebody may go on writing.
        for _ in range(_PIPE_BYTES // 4096 + 1):
            if not self._take():
                break
        self._loop.remove_reader(self._source)
        os.close(self._source)
        return self._kept.decode(errors="replace")


async def run_child(
    arguments: Sequence[str],
    limits: Limits,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdout: Path | None = None,
) -> ChildOutcome:
    """Run `python ARGUMENTS...` and wait for its end. Never raises for what the child does.

    The child is a session of its own; however it ends, the whole session is killed, and what left the session too (see
    `stragglers`). Cancelling re-raises after all are gone.
    """
    own = child_environment(limits, environment)
    mark = own[MARK_VARIABLE] = mark_below(own)
    out = stdout.open("wb") if stdout is not None else None
    errors = _StandardError()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=cwd,
            env=own,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out if out is not None else asyncio.subprocess.DEVNULL,
            stderr=errors.pipe,
            start_new_session=True,
        )
    except BaseException:
        errors.close()
        raise
    finally:
        os.close(errors.pipe)
        if out is not None:
            out.close()
    guard = _Guard(process.pid, limits)
    guarding = asyncio.create_task(guard.watch())
    try:
        kind = "" if await within(process.wait(), limits.wall_s) else "timed_out"
    finally:
        guarding.cancel()
        await asyncio.gather(guarding, return_exceptions=True)
        # Also after a normal end: grandchildren of the session must not outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        code = await process.wait()
        kill_marked(mark)
        said = errors.close()
    return ChildOutcome(kind or guard.kind(code), code, said)
