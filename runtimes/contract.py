"""The contract of `Runtime` as checks that can be made wherever an adapter is installed: by tests, and by `fleetfit selfproof`.

`python -m fleetfit.runtimes.contract RUNTIME` makes all of them on one adapter and prints a line of JSON for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fleetfit.core.children import Limits, limit_self, run_child

if __name__ == "__main__":
    limit_self()

import numpy as np
import psutil
from numpy.typing import NDArray

from fleetfit.core.children import keep_stdout
from fleetfit.core.errors import FleetfitError, InvalidModel
from fleetfit.runtimes.base import Runtime
from fleetfit.runtimes.operators import NoProfile
from fleetfit.runtimes.registry import runtime
from fleetfit.runtimes.samples import NETWORK_OUTPUT, WEIGHTS, Samples, network_inputs, samples_of

# A processor computes sums in another order, and a GPU in another still.
_NEAR: Final = 1e-5
_NETWORK_NEAR: Final = 1e-3
_LEAST_SECONDS: Final = 0.3
# Enough that its operators take longer than the microsecond that profilers count in.
_PROFILED_SAMPLES: Final = 64
# What a profiler may round one run of one operator up by.
_ROUNDED_NS: Final = 2_000
_MEMORY_BYTES: Final = 1 << 30


class ContractBroken(AssertionError):
    """An adapter does not do what `Runtime` promises; the message says what it did instead."""


Check = Callable[[Runtime, Samples], None]


def rows(count: int) -> NDArray[np.float32]:
    """`count` samples for the small builds, (count, 4), the same each time."""
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


def is_one_sentence(error: FleetfitError) -> bool:
    """Whether people can read the message."""
    return "\n" not in error.message and "Traceback" not in error.message and 20 < len(error.message) < 500


def outputs_come_by_name_with_the_batch_first(adapter: Runtime, samples: Samples) -> None:
    """For one sample, and for another number of them in the same loaded model."""
    with _loaded(adapter, samples.good()) as model:
        for count in (1, 5):
            outputs = model.run({"x": rows(count)})
            expected = rows(count) @ WEIGHTS
            _need(set(outputs) == {"scores", "positive"}, f"its outputs are called {sorted(outputs)}")
            _close(outputs["scores"], expected, _NEAR, f"scores of {count}")
            _close(outputs["positive"], np.maximum(expected, 0), _NEAR, f"positive of {count}")


def a_network_computes_what_it_computes_elsewhere(adapter: Runtime, samples: Samples) -> None:
    """Convolutions, strides, pooling: against outputs that were computed in float64 by other code."""
    with _loaded(adapter, samples.network()) as model:
        outputs = model.run({"x": network_inputs(len(NETWORK_OUTPUT))})
        _close(outputs["scores"], np.asarray(NETWORK_OUTPUT), _NETWORK_NEAR, "scores of the network")


def inputs_are_not_written_to(adapter: Runtime, samples: Samples) -> None:
    """Neither by a run nor by a bound call."""
    feed = rows(3)
    with _loaded(adapter, samples.good()) as model:
        model.run({"x": feed})
        model.bind({"x": feed})()
    _need(np.array_equal(feed, rows(3)), "a run has changed its inputs")


def a_bound_call_can_be_repeated_and_changes_no_result(adapter: Runtime, samples: Samples) -> None:
    """Runs before and after it give the same bits."""
    with _loaded(adapter, samples.good()) as model:
        before = model.run({"x": rows(3)})
        call = model.bind({"x": rows(2)})
        for _ in range(20):
            call()
        after = model.run({"x": rows(3)})
    same = all(np.array_equal(before[name], after[name]) for name in before)
    _need(same, "a run after bound calls gives other results than the one before")


def a_bound_call_keeps_its_inputs_alive(adapter: Runtime, samples: Samples) -> None:
    """And lets them go when it goes."""
    with _loaded(adapter, samples.good()) as model:
        feed = rows(4)
        call = model.bind({"x": feed})
        alive = weakref.ref(feed)
        del feed
        gc.collect()
        _need(alive() is not None, "a bound call's inputs are freed while it may still be called")
        call()
        del call
        gc.collect()
        _need(alive() is None, "a bound call's inputs stay in memory after it is gone")


def bytes_that_are_no_build_are_refused_in_a_sentence(adapter: Runtime, samples: Samples) -> None:
    """Nothing, noise, half of a build, text."""
    good = samples.good()
    for build in (b"", bytes(range(256)) * 4, good[: len(good) // 2], b"hello\n"):
        _refused(lambda build=build: adapter.load(build, threads=1), f"{len(build)} bytes that are no build")  # type: ignore[misc]


def inputs_that_do_not_fit_are_refused_in_a_sentence(adapter: Runtime, samples: Samples) -> None:
    """A missing one, a wrong shape, a wrong dtype."""
    misfits: tuple[dict[str, NDArray[Any]], ...] = (
        {},
        {"x": np.ones((2, 5), np.float32)},
        {"x": np.ones((2, 4), np.int8)},
    )
    with _loaded(adapter, samples.good()) as model:
        for feeds in misfits:
            for use in (model.run, model.bind):
                said = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in feeds.items()) or "no inputs"
                _refused(lambda use=use, feeds=feeds: use(feeds), said)  # type: ignore[misc]


def data_outside_the_build_cannot_be_reached(adapter: Runtime, samples: Samples) -> None:
    """Where the format knows such data: it may lie right beside, and is not taken."""
    if samples.external is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "weights.bin").write_bytes(WEIGHTS.tobytes())
            with _working_in(folder):
                refuses_external_data(adapter, samples.external())


def refuses_external_data(adapter: Runtime, build: bytes) -> None:
    """One build whose weights lie in another file."""
    message = _refused(lambda: adapter.load(build, threads=1), "a build whose weights lie in another file")
    _need("one file" in message, f"it refuses a build of several files without a way out: {message}")


def no_more_threads_work_than_asked_for(adapter: Runtime, samples: Samples) -> None:
    """For one thread and for three."""
    for threads in (1, 3):
        with _loaded(adapter, samples.good(), threads=threads) as model:
            call = model.bind({"x": rows(8_000)})
            before = _seconds_of_threads()
            spent: list[float] = []
            while max(spent, default=0.0) < _LEAST_SECONDS:
                call()
                spent = [seconds - before.get(thread, 0.0) for thread, seconds in _seconds_of_threads().items()]
        # Others may sleep there, or start the work and wait.
        working = sum(seconds > max(spent) / 10 for seconds in spent)
        _need(working <= threads, f"{working} threads worked where {threads} were asked for")


def its_operators_are_timed_or_it_says_why_not(adapter: Runtime, samples: Samples) -> None:
    """By one thread, which works on one operator at a time: they cannot take longer than the calls that they are part of."""
    build, feeds = samples.network(), {"x": network_inputs(_PROFILED_SAMPLES)}
    told: list[float] = []
    adapter.prepare(build, feeds, threads=1)
    found = adapter.profile(build, feeds, threads=1, progress=told.append)
    if isinstance(found, NoProfile):
        _need(
            "\n" not in found.reason and 20 < len(found.reason) < 500,
            f"its reason is no clause: {found.reason[:200]!r}",
        )
        return
    _need(bool(told) and all(0 <= share <= 1 for share in told), f"it tells how far it is by {told[:3]}")
    _need(bool(found.operators) and found.calls > 0, "it gives a profile without operators or calls")
    times = [one.ns for one in found.operators]
    _need(
        all(one.name and one.runs > 0 and one.ns >= 0 for one in found.operators),
        "an operator has no name, run or time",
    )
    _need(times == sorted(times, reverse=True), "its operators do not come largest first")
    total, runs = sum(times), sum(one.runs for one in found.operators)
    _need(abs(sum(ns / total for ns in times) - 1) < _NEAR if total else False, "its operators take no time")
    most = found.elapsed_ns + runs * _ROUNDED_NS
    _need(total <= most, f"its operators take {total} ns of calls that take {found.elapsed_ns} ns in all")


def closing_twice_is_closing_once(adapter: Runtime, samples: Samples) -> None:
    """Also after a run."""
    with _loaded(adapter, samples.good(), threads=2) as model:
        model.run({"x": rows(1)})
        model.close()


def memory_that_cannot_be_had_is_a_memory_error(adapter: Runtime, samples: Samples) -> None:
    """In a child: the limit stays with the process."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "build").write_bytes(samples.hungry())
        arguments = ["-c", _HUNGRY.format(name=adapter.name)]
        limits = Limits(memory_bytes=_MEMORY_BYTES, wall_s=100)
        outcome = asyncio.run(run_child(arguments, limits, cwd=Path(folder)))
    # What a library itself writes there is its own affair.
    good = outcome.kind == "ok" and "Traceback" not in outcome.stderr_tail
    _need(good, f"with too little memory its process ended as {outcome.kind}: {outcome.stderr_tail[-300:]!r}")


CHECKS: Final[Mapping[str, Check]] = {
    check.__name__.replace("_", " "): check
    for check in (
        outputs_come_by_name_with_the_batch_first,
        a_network_computes_what_it_computes_elsewhere,
        inputs_are_not_written_to,
        a_bound_call_can_be_repeated_and_changes_no_result,
        a_bound_call_keeps_its_inputs_alive,
        bytes_that_are_no_build_are_refused_in_a_sentence,
        inputs_that_do_not_fit_are_refused_in_a_sentence,
        data_outside_the_build_cannot_be_reached,
        no_more_threads_work_than_asked_for,
        its_operators_are_timed_or_it_says_why_not,
        closing_twice_is_closing_once,
        memory_that_cannot_be_had_is_a_memory_error,
    )
}
"""Every check, by what it says."""

_HUNGRY: Final = """
from fleetfit.core.children import limit_self; limit_self()
import sys, numpy
from pathlib import Path
from fleetfit.runtimes.registry import runtime
feeds = {{'x': numpy.ones((1, 4), numpy.float32)}}
for use in ('run', 'bind'):
    try:
        model = runtime({name!r}).load(Path('build').read_bytes(), threads=1)
        getattr(model, use)(feeds)
    except MemoryError:
        continue
    sys.exit('no MemoryError')
"""


def _need(holds: bool, broken: str) -> None:
    if not holds:
        raise ContractBroken(broken)


def _close(found: NDArray[Any], expected: NDArray[Any], near: float, what: str) -> None:
    _need(found.shape == expected.shape, f"{what} have the shape {found.shape}, not {expected.shape}")
    off = float(np.max(np.abs(found - expected) - near * np.abs(expected)))
    _need(off <= near, f"{what} are off by {off:.3g}")


def _refused(use: Callable[[], object], what: str) -> str:
    """What is said to `what`."""
    try:
        use()
    except InvalidModel as error:
        _need(is_one_sentence(error), f"it refuses {what} with what is no sentence: {error.message[:200]!r}")
        return error.message
    raise ContractBroken(f"it takes {what}")


@contextlib.contextmanager
def _loaded(adapter: Runtime, build: bytes, *, threads: int = 1) -> Iterator[Any]:
    model = adapter.load(build, threads=threads)
    try:
        yield model
    finally:
        model.close()


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _seconds_of_threads() -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}


def main(name: str) -> int:
    """Make every check on the adapter of that name; what each came to is a line of JSON: its name, and "" or what broke."""
    adapter = runtime(name)
    samples = samples_of(adapter.formats)
    if samples is None:
        print(f"fleetfit ships no builds of {' or '.join(adapter.formats)} to check {name} with", file=sys.stderr)
        return 1
    answers = keep_stdout()
    for title, check in CHECKS.items():
        broken = ""
        try:
            check(adapter, samples)
        except ContractBroken as error:
            broken = str(error)
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises is an answer
            broken = f"it raised {type(error).__name__}: {error}"
        answers.write(json.dumps([title, broken]).encode() + b"\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
