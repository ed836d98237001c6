"""The energy of a call: one loaded build at rest and at work in turn, while the meter is read from outside.

Rest and work alternate within seconds, so that a board that warms up, and leaks more for it, is compared with itself; the meter
is read by the parent, so that reading costs the same in both and leaves no trace in the build's process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from fleetfit.agent.measuring.timing import Call, warm_up
from fleetfit.agent.meters.base import FoundMeter
from fleetfit.proto.v1 import measurement_pb2

# Twice per update of a slow monitor, and a small part of a stretch.
_READ_EVERY_S: Final = 0.02
# Before the first stretch: threads of runtimes that spin after a call have stopped.
_LULL_S: Final = 0.2
# How the trial learns the meter's lag from its parent.
LAG_VARIABLE: Final = "FLEETFIT_METER_LAG_NS"


def rest_and_work(
    call: Call, method: measurement_pb2.Method, step: Callable[[float], None], *, lag_ns: int = 0
) -> measurement_pb2.EnergyRun:
    """Rest, work, rest, ... work, rest: each round of work lies between two rests.

    Each is longer by the meter's lag, in which it still averages over what came before.
    """
    run = measurement_pb2.EnergyRun(lag_ns=lag_ns)
    warm_up(call, method.warmup_limit_ns // 2)
    time.sleep(_LULL_S)
    for round_number in range(method.energy_rounds):
        _rest(run, method.energy_rest_ns + lag_ns)
        _work(run, call, method.energy_busy_ns + lag_ns)
        step((round_number + 1) / method.energy_rounds)
    _rest(run, method.energy_rest_ns + lag_ns)
    return run


def _rest(run: measurement_pb2.EnergyRun, lasting_ns: int) -> None:
    stretch = run.stretches.add()
    stretch.window.begin_monotonic_ns = time.monotonic_ns()
    time.sleep(lasting_ns / 1e9)
    stretch.window.end_monotonic_ns = time.monotonic_ns()


def _work(run: measurement_pb2.EnergyRun, call: Call, lasting_ns: int) -> None:
    stretch = run.stretches.add()
    now = stretch.window.begin_monotonic_ns = time.monotonic_ns()
    end = now + lasting_ns
    while now < end:
        call()
        stretch.calls += 1
        now = time.monotonic_ns()
    stretch.window.end_monotonic_ns = now


async def read_until_cancelled(found: FoundMeter, run: measurement_pb2.EnergyRun) -> None:
    """Append what the meter says to `run`, some dozens of times a second."""
    run.meter, run.covers, run.counts = found.name, found.meter.covers, found.meter.counts
    while True:
        # Reading takes up to milliseconds on an I2C bus: the value is of some moment between these two.
        before = time.monotonic_ns()
        value = found.meter.read()
        if value is not None:
            run.monotonic_ns.append((before + time.monotonic_ns()) // 2)
            run.value.append(value)
        await asyncio.sleep(_READ_EVERY_S)
