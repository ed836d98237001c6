"""Two builds that are timed in turn: each has a seat, in this process or, for another runtime, in one of its own.

`python -m fleetfit.agent.measuring.seats TASKDIR baseline` is such a process. It answers one line of JSON for each that it
reads, and computes nothing in between: who has been asked has the turn.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, Limits, child_environment, keep_stdout, limit_self

if __name__ == "__main__":
    limit_self()

from numpy.typing import NDArray

from fleetfit.agent.measuring.inputs import timing_feeds
from fleetfit.agent.measuring.split import open_split
from fleetfit.agent.measuring.timing import Call, block_size, take_samples, time_once, warm_up
from fleetfit.core.errors import FleetfitError, InvalidModel
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.base import Runtime, ignore_progress
from fleetfit.runtimes.registry import runtime

# Above this, what one call leaves in the caches is a small part of the next.
SLOW_CALL_NS: Final = 100_000_000
_PATIENCE_S: Final = 10.0


class Seat(Protocol):
    """A loaded build that is asked for blocks of samples. All times are in nanoseconds."""

    engine: int
    """Which engine of its build it is, counted from 1; 0 where the runtime makes none."""
    engine_ns: int
    """What making that engine took, or finding it made."""

    def warm_up(self, limit_ns: int) -> bool:
        """Call until steady, or the limit passes; whether it is steady."""
        ...

    def size(self, block_ns: int) -> int:
        """How many samples make a block of that length; one for a slow build."""
        ...

    def block(self, count: int, limit_ns: int) -> list[int]:
        """That many samples, or as many as fit into the limit."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class Blocks:
    """A call in blocks, whose `size` is asked for first: a call that is slow has one to itself."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._slow = False

    def size(self, block_ns: int) -> int:
        """See Seat."""
        self._slow = time_once(self._call) > SLOW_CALL_NS
        return 1 if self._slow else block_size(self._call, block_ns)

    def block(self, count: int, limit_ns: int) -> list[int]:
        """See Seat."""
        # The first after another's turn meets cold caches; it is not what a deployment sees.
        if not self._slow:
            self._call()
        return take_samples(self._call, count, limit_ns)


class SeatHere(Blocks):
    """A build in this process."""

    def __init__(
        self,
        task: measurement_pb2.MeasureTask,
        ref: measurement_pb2.BuildRef,
        taskdir: Path,
        attempt: int = 0,
        progress: Callable[[float], None] = ignore_progress,
    ) -> None:
        feeds = feeds_of(task, taskdir)
        adapter = runtime(ref.runtime)
        build = (taskdir / "in" / ref.artifact_name).read_bytes()
        self.engine, self.engine_ns = prepared(adapter, build, feeds, task.threads, attempt, progress)
        self._model = adapter.load(build, threads=task.threads)
        super().__init__(self._model.bind(feeds))

    def warm_up(self, limit_ns: int) -> bool:
        """See Seat."""
        return warm_up(self._call, limit_ns)[1]

    def close(self) -> None:
        """See Seat."""
        del self._call
        self._model.close()


class SeatApart:
    """A build in a process of its own, so that two runtimes' threads never share one."""

    def __init__(
        self,
        task: measurement_pb2.MeasureTask,
        ref: measurement_pb2.BuildRef,
        taskdir: Path,
        attempt: int = 0,
        progress: Callable[[float], None] = ignore_progress,
    ) -> None:
        self._title, self._progress = ref.runtime, progress
        side = "candidate" if ref == task.candidate else "baseline"
        self._child = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "fleetfit.agent.measuring.seats", str(taskdir), side, str(attempt)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Its limits it inherits.
            env=child_environment(Limits()),
        )
        try:
            self.engine, self.engine_ns = self._answer()
        except BaseException:
            self.close()
            raise

    def warm_up(self, limit_ns: int) -> bool:
        """See Seat."""
        return bool(self._ask("warm_up", limit_ns))

    def size(self, block_ns: int) -> int:
        """See Seat."""
        return int(self._ask("size", block_ns))

    def block(self, count: int, limit_ns: int) -> list[int]:
        """See Seat."""
        return [int(sample) for sample in self._ask("block", count, limit_ns)]

    def close(self) -> None:
        """See Seat."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _ask(self, name: str, *arguments: int) -> Any:
        assert self._child.stdin is not None  # noqa: S101 - asked for above
        try:
            self._child.stdin.write(json.dumps([name, *arguments]).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None  # noqa: S101 - asked for above
        said: Mapping[str, Any] = {"progress": 0.0}
        while "progress" in said:
            line = self._child.stdout.readline()
            if not line:
                raise self._ended()
            said = json.loads(line)
            if "progress" in said:
                self._progress(said["progress"])
        if "refused" in said:
            raise InvalidModel(str(said["refused"]))
        return said["value"]

    def _ended(self) -> Exception:
        if self._child.wait() == EXIT_OUT_OF_MEMORY:
            return MemoryError(f"{self._title} needs more memory than there is beside the other build")
        return InvalidModel(f"{self._title} crashed on the build that is timed beside; try another recipe or runtime")


def prepared(
    adapter: Runtime,
    build: bytes,
    feeds: Mapping[str, NDArray[Any]],
    threads: int,
    attempt: int,
    progress: Callable[[float], None],
) -> tuple[int, int]:
    """Have a runtime make its engine of a build, or find it made: which it is, from 1, and the nanoseconds; else twice 0."""
    if not adapter.compiles:
        adapter.prepare(build, feeds, threads=threads, progress=progress)
        return 0, 0
    began = time.monotonic_ns()
    adapter.prepare(build, feeds, threads=threads, attempt=attempt, progress=progress)
    return attempt + 1, time.monotonic_ns() - began


def feeds_of(task: measurement_pb2.MeasureTask, taskdir: Path) -> dict[str, NDArray[Any]]:
    """What both builds are timed on."""
    if not task.data_artifact_name:
        return timing_feeds(task, None)
    with open_split(taskdir / "in" / task.data_artifact_name) as split:
        return timing_feeds(task, split)


def main(arguments: list[str]) -> int:
    """Serve one seat until nobody asks any more."""
    taskdir, side, attempt = Path(arguments[0]), arguments[1], int(arguments[2])
    answers = keep_stdout()

    def say(**message: object) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    task = measurement_pb2.MeasureTask.FromString((taskdir / "task.pb").read_bytes())
    try:
        ref = task.candidate if side == "candidate" else task.baseline
        seat = SeatHere(task, ref, taskdir, attempt, lambda done: say(progress=done))
        say(value=[seat.engine, seat.engine_ns])
        asked: dict[str, Callable[..., object]] = {"warm_up": seat.warm_up, "size": seat.size, "block": seat.block}
        for line in sys.stdin:
            name, *values = json.loads(line)
            say(value=asked[name](*values))
        seat.close()
    except BrokenPipeError:
        return 0
    except MemoryError:
        return EXIT_OUT_OF_MEMORY
    except FleetfitError as error:
        say(refused=error.message)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
