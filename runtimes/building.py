"""Compiling a build in a process of its own: it takes minutes, and may crash, hang or eat memory.

`build_apart` starts `python -m MODULE FOLDER`, whose main is `serve`: it reads FOLDER/request.json and FOLDER/build and leaves what
it made in FOLDER, or one sentence in FOLDER/refused. FOLDER/progress has how far it is, from 0 to 1.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fleetfit.core.children import EXIT_OUT_OF_MEMORY, Limits, child_environment
from fleetfit.core.errors import FleetfitError, InvalidModel, TimedOut, UnsupportedHere
from fleetfit.runtimes.refusal import raise_memory

Shapes = Mapping[str, Sequence[int]]
Tell = Callable[[float], None]
BUILD_LIMIT_S: Final = 1800.0
EXIT_REFUSED: Final = 3
_LOOK_S: Final = 0.2
_WORKSPACE_SHARE: Final = 0.5


@contextmanager
def build_apart(
    module: str,
    build: bytes,
    request: Mapping[str, Any],
    *,
    title: str,
    limit_s: float,
    memory_bytes: int | None,
    progress: Tell,
) -> Iterator[Path]:
    """The folder in which `module` has left what it made of a build; it is gone afterwards. `title` is the compiler's name.

    `progress` hears fractions from 0 to 1, and again each time something can be told or time has passed. Raises what the
    module says, TimedOut after `limit_s` seconds, and MemoryError where `memory_bytes` or the device's memory are too few.
    """
    with tempfile.TemporaryDirectory(prefix="fleetfit-") as name:
        folder = Path(name)
        (folder / "build").write_bytes(build)
        (folder / "request.json").write_text(json.dumps(dict(request)))
        with (folder / "said").open("wb") as said:
            child = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", module, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=child_environment(Limits(memory_bytes=memory_bytes)),
            )
        try:
            code = _watch(child, folder / "progress", title, limit_s, progress)
        finally:
            child.kill()
            child.wait()
        _settle(folder, code, title)
        yield folder


def engine_apart(
    module: str,
    build: bytes,
    shapes: Shapes,
    *,
    title: str,
    limit_s: float,
    memory_bytes: int | None,
    progress: Tell,
) -> bytes:
    """The engine that `module` leaves as `engine`, for inputs of exactly `shapes`. Raises as `build_apart`."""
    request = {"shapes": {port: list(shape) for port, shape in shapes.items()}, "memory_bytes": memory_bytes}
    made = build_apart(
        module, build, request, title=title, limit_s=limit_s, memory_bytes=memory_bytes, progress=progress
    )
    with made as folder:
        return (folder / "engine").read_bytes()


def serve(folder: Path, work: Callable[[Path, Mapping[str, Any], Tell], None]) -> int:
    """The other side: do `work` with the folder, the request and a way to tell how far it is; what to exit with."""

    def tell(fraction: float) -> None:
        with contextlib.suppress(OSError):
            (folder / "progress").write_text(f"{fraction:.3f}")

    try:
        work(folder, json.loads((folder / "request.json").read_text()), tell)
    except MemoryError:
        return EXIT_OUT_OF_MEMORY
    except FleetfitError as error:
        here = isinstance(error, UnsupportedHere)
        (folder / "refused").write_text(json.dumps({"message": error.message, "unsupported": here}))
        return EXIT_REFUSED
    return 0


def workspace_bytes(free: int, limit: int | None) -> int:
    """What TensorRT may work with, of the GPU's memory that is `free` while nothing is loaded and this process's limit.

    Weights, activations and the processor's side need the rest.
    """
    return int(min(free, limit or free) * _WORKSPACE_SHARE)


def memory_limit() -> int | None:
    """What this process may allocate. A Jetson's GPU has the processor's memory, which the kernel does not count for it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft


def _watch(child: subprocess.Popen[bytes], told: Path, title: str, limit_s: float, progress: Tell) -> int:
    began, fraction = time.monotonic(), 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(_LOOK_S)
        spent = (time.monotonic() - began) / limit_s
        if spent > 1:
            raise TimedOut(
                f"{title} did not finish the build's engine within {limit_s / 60:.0f} minutes; try a smaller build, or a "
                "faster power mode"
            )
        with contextlib.suppress(OSError, ValueError):
            fraction = max(fraction, float(told.read_text()))
        # Not every compiler tells how far it is: the share of the time that has passed is a sign of life at least.
        progress(max(fraction, spent))


def _settle(folder: Path, code: int, title: str) -> None:
    if code == 0:
        return
    if code == EXIT_OUT_OF_MEMORY:
        raise MemoryError(f"{title} could not allocate what building the engine needs")
    if code == EXIT_REFUSED:
        said = json.loads((folder / "refused").read_text())
        raise (UnsupportedHere if said["unsupported"] else InvalidModel)(said["message"])
    tail = (folder / "said").read_text(errors="replace").strip().splitlines()[-1:]
    raise_memory(RuntimeError(*tail))
    raise InvalidModel(
        f"{title} crashed while it built the engine ({(tail or ['it said nothing'])[0][:200]}); "
        "try another recipe or runtime"
    )
