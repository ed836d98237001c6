"""What adapters refuse alike: inputs that do not fit, and failures of libraries that name everything RuntimeError."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.base import Arrays

T = TypeVar("T")
_OUT_OF_MEMORY = (
    "bad_alloc",
    "failed to allocate",
    "out of memory",
    "bad allocation",
    "cannot allocate",
    "can not allocate",
)


@dataclass(frozen=True)
class Port:
    """One input or output: NumPy's dtype name, and the shape with the batch first (-1: may vary)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def check_feeds(feeds: Arrays, inputs: Sequence[Port]) -> None:
    """Raises InvalidModel unless there is one array for each input, of its dtype and shape."""
    wanted: Mapping[str, Port] = {port.name: port for port in inputs}
    if set(feeds) != set(wanted):
        raise InvalidModel(f"the build takes {', '.join(sorted(wanted))}, not {', '.join(sorted(feeds)) or 'nothing'}")
    for name, port in wanted.items():
        given = feeds[name]
        fits = len(given.shape) == len(port.shape) and all(
            want in (-1, size) for want, size in zip(port.shape, given.shape, strict=True)
        )
        if not fits or given.dtype.name != port.dtype:
            raise InvalidModel(
                f"the build takes '{name}' as {port.dtype} {list(port.shape)}, not as {given.dtype.name} {list(given.shape)}"
            )


def raise_memory(error: Exception) -> None:
    """Raises MemoryError where that is what a library's exception means."""
    if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        raise MemoryError(str(error)) from error


def guarded(work: Callable[[], T], line: int) -> T:
    """What `work` gives, where a library computes. Of what the library says when it fails, `line` tells why.

    Raises MemoryError, or InvalidModel.
    """
    try:
        return work()
    except MemoryError:
        raise
    except Exception as error:  # libraries' own have no common root
        raise_memory(error)
        raise InvalidModel(f"the build loads but does not run: {lines(error)[line]}") from error


def lines(error: Exception) -> list[str]:
    """What a library said, line by line and never nothing; each at most 300 characters."""
    said = [line.strip()[:300] for line in str(error).splitlines() if line.strip()]
    return said or [type(error).__name__]
