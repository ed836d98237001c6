"""Which inference runtimes can be used here: all asked in this process, or each in one of its own.

Asking imports a runtime's package, and native code, a third party's above all, may crash or hang. Then it must take nobody with it:
`python -m fleetfit.agent.probe.runtimes NAME` asks one, and prints a serialized Runtime.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from fleetfit.core.children import ChildOutcome, Limits, keep_stdout, limit_self, run_child
from fleetfit.proto.v1 import snapshot_pb2
from fleetfit.runtimes.base import Availability, Runtime
from fleetfit.runtimes.registry import adapter_of, runtime_names, runtimes

_ADVICE: Final = "install that runtime again, or remove it"


def ask_together() -> list[snapshot_pb2.Runtime]:
    """Every runtime, asked in this process."""
    return [_answer(name, adapter) for name, adapter in runtimes().items()]


async def ask_apart(folder: Path, limit_s: float) -> list[snapshot_pb2.Runtime]:
    """Every runtime, each asked in a child that may take so many seconds; one that gives no answer cannot be used, and says why.

    One after another: a device that has little memory has it for one of them. `folder` takes the answers.
    """
    return [await _ask_in_child(name, folder / f"{number}.pb", limit_s) for number, name in enumerate(runtime_names())]


async def _ask_in_child(name: str, out: Path, limit_s: float) -> snapshot_pb2.Runtime:
    arguments = ["-m", "fleetfit.agent.probe.runtimes", name]
    outcome = await run_child(arguments, Limits(wall_s=limit_s, expendable=True), stdout=out)
    answer = snapshot_pb2.Runtime()
    try:
        # However it ended afterwards: native libraries crash at the end of a process, too.
        answer.ParseFromString(out.read_bytes())
    except (OSError, DecodeError):
        answer.Clear()
    if answer.name != name:
        answer = snapshot_pb2.Runtime(name=name, reason=_why_silent(outcome, limit_s))
    return answer


def _why_silent(outcome: ChildOutcome, limit_s: float) -> str:
    if outcome.kind == "timed_out":
        what = f"it did not say within {limit_s:g} s whether it can be used"
    elif outcome.kind == "crashed":
        what = f"asking whether it can be used crashed its process ({_signal(-outcome.exit_code)})"
    elif outcome.kind == "out_of_memory":
        what = "it needs more memory than there is to say whether it can be used"
    else:
        last = (outcome.stderr_tail.strip().splitlines() or ["and not a word"])[-1]
        what = f"asking whether it can be used ended its process (exit code {outcome.exit_code}: {last[:200]})"
    return f"{what}; {_ADVICE}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _answer(name: str, adapter: Runtime | Availability) -> snapshot_pb2.Runtime:
    if isinstance(adapter, Availability):
        return snapshot_pb2.Runtime(name=name, reason=adapter.reason)
    try:
        found = adapter.availability()
    except Exception as error:  # noqa: BLE001 - a third party's may break its promise never to raise
        said = f"asking whether it can be used failed ({type(error).__name__}: {error}); {_ADVICE}"
        return snapshot_pb2.Runtime(name=name, reason=said)
    return snapshot_pb2.Runtime(
        name=name,
        version=found.version,
        available=found.available,
        reason=found.reason,
        formats=adapter.formats,
        providers=found.providers,
    )


def main(name: str) -> None:
    """Ask one runtime, and print what it says."""
    answers = keep_stdout()
    answers.write(_answer(name, adapter_of(name)).SerializeToString())
    answers.flush()
    # Nothing is left to do that an exit in order could do, and some libraries crash or hang there.
    os._exit(0)


if __name__ == "__main__":
    limit_self()
    main(sys.argv[1])
