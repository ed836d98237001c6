"""How measurements are made: the named methods that a server hands to agents."""

from __future__ import annotations

from typing import Final

from fleetfit.core.errors import InvalidInput
from fleetfit.proto.v1 import measurement_pb2

# Stored with each measurement; grows whenever the same method would give figures that cannot be compared.
# 2: sampling goes on until intervals are narrow; the order of loading is kept out of the ratio's.
# 3: blocks of 1 ms instead of 12 (3 where quick), and as many as fit into the same time.
METHOD_VERSION: Final = "3"

# Above this share of all processors, or this much stolen by the hypervisor, a device is not quiet.
QUIET_OTHERS_PERCENT: Final = 20.0
QUIET_STEAL_PERCENT: Final = 5.0
PAIR_PROCESSES_MORE: Final = 2
"""So many fresh processes are added at a time where the fewest do not tell enough: either build is loaded first in half of them."""
_MS: Final = 1_000_000
_S: Final = 1_000_000_000
_EMULATED_CHILD_NS: Final = 900 * _S


def named_method(name: str) -> measurement_pb2.Method:
    """`standard`, or `quick` for trials of the machinery, whose intervals are wide. Raises InvalidInput."""
    if name == "standard":
        return measurement_pb2.Method(
            # Student's factor falls from 4.3 (3 processes) to 2.6 (6); more cost more than they narrow. Even, because the
            # build that is loaded first is faster or slower by up to 1.5 % on some machines, and half load either first.
            pair_processes=6,
            blocks_per_process=12,
            # What slows the device down often begins or ends within a pair of long blocks, and a process then is far off: of 12
            # runs beside a neighbour the widest interval at 99 % was 3.7 % either way with blocks of 12 ms, 3.5 with 3, 1.5 with 1.
            block_ns=1 * _MS,
            rounds_ns=300 * _MS,
            warmup_limit_ns=1 * _S,
            # p99 needs 662.
            solo_samples=700,
            solo_limit_ns=2 * _S,
            child_limit_ns=300 * _S,
            quiet_limit_ns=5 * _S,
            precision=0.01,
            # On a quiet device six do; where processes differ by 2 % these leave 1.1 % either way, and half as many again
            # would leave 0.9.
            most_pair_processes=16,
            pair_limit_ns=20 * _S,
            more_rounds_limit_ns=1 * _S,
            # A round gives one figure of the energy of a call; Student's factor for six is 2.6.
            energy_rounds=6,
            energy_rest_ns=400 * _MS,
            energy_busy_ns=800 * _MS,
            cool_limit_ns=60 * _S,
            # Twenty points of two seconds each in three rounds are two minutes; the last cuts off what is slow.
            scaling_rounds=3,
            scaling_point_ns=500 * _MS,
            scaling_limit_ns=180 * _S,
            # Two engines of one network differ, so the engine is a level of the error: Student's factor is 12.7 for two of them,
            # 4.3 for three, 3.2 for four, and each takes minutes. Three, each in as many processes of either order.
            engines=3,
            engines_limit_ns=900 * _S,
            # As many as pairs have at the fewest; there is no ratio to be chosen by, so no more are added.
            chain_processes=6,
        )
    if name == "quick":
        return measurement_pb2.Method(
            pair_processes=4,
            blocks_per_process=4,
            block_ns=1 * _MS,
            rounds_ns=25 * _MS,
            warmup_limit_ns=_S // 5,
            solo_samples=100,
            solo_limit_ns=_S // 3,
            child_limit_ns=120 * _S,
            quiet_limit_ns=_S // 2,
            energy_rounds=3,
            energy_rest_ns=200 * _MS,
            energy_busy_ns=300 * _MS,
            cool_limit_ns=5 * _S,
            scaling_rounds=2,
            scaling_point_ns=100 * _MS,
            scaling_limit_ns=30 * _S,
            chain_processes=4,
        )
    raise InvalidInput(f"there is no measuring method '{name}'; choose standard or quick", field="method")


def for_emulated(method: measurement_pb2.Method) -> measurement_pb2.Method:
    """The same method for a device that is emulated: everything that is measured, and no care for its timings.

    They mean nothing, starting a process there takes ten times as long as on the machine that emulates, and what takes longest
    is starting processes.
    """
    brief = measurement_pb2.Method()
    brief.CopyFrom(method)
    # One for either order of loading.
    brief.pair_processes = brief.most_pair_processes = min(method.pair_processes, PAIR_PROCESSES_MORE)
    brief.chain_processes = min(method.chain_processes, PAIR_PROCESSES_MORE)
    brief.precision = 0
    brief.child_limit_ns = max(method.child_limit_ns, _EMULATED_CHILD_NS)
    return brief


def health_method(name: str) -> measurement_pb2.Method:
    """How the golden model is timed by a server that measures by this method: in five fresh processes, quickly in three."""
    quick = name == "quick"
    return measurement_pb2.Method(
        pair_processes=2 if quick else 4,
        blocks_per_process=4 if quick else 8,
        block_ns=1 * _MS,
        rounds_ns=(25 if quick else 200) * _MS,
        warmup_limit_ns=_S // 5 if quick else _S // 2,
        solo_samples=100 if quick else 300,
        solo_limit_ns=_S // 3 if quick else _S,
        child_limit_ns=120 * _S,
        # Nobody waits for it: it may wait longer for a quiet device than a job's measurement does.
        quiet_limit_ns=_S // 2 if quick else 30 * _S,
        cool_limit_ns=(5 if quick else 60) * _S,
    )
