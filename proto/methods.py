"""How measurements are made: the named methods that a server hands to agents."""

from __future__ import annotations

from typing import Final

from fleetfit.core.errors import InvalidInput
from fleetfit.proto.v1 import measurement_pb2

# Stored with each measurement; grows whenever the same method would give figures that cannot be compared.
METHOD_VERSION: Final = "1"

_MS: Final = 1_000_000
_S: Final = 1_000_000_000


def named_method(name: str) -> measurement_pb2.Method:
    """`standard`, or `quick` for trials of the machinery, whose intervals are wide. Raises InvalidInput."""
    if name == "standard":
        return measurement_pb2.Method(
            # Student's factor falls from 4.3 (3 processes) to 2.6 (6); more cost more than they narrow. Even, because the
            # build that is loaded first is faster or slower by up to 1.5 % on some machines, and half load either first.
            pair_processes=6,
            blocks_per_process=12,
            block_ns=12 * _MS,
            warmup_limit_ns=1 * _S,
            # p99 needs 662.
            solo_samples=700,
            solo_limit_ns=2 * _S,
            child_limit_ns=300 * _S,
            quiet_limit_ns=5 * _S,
        )
    if name == "quick":
        return measurement_pb2.Method(
            pair_processes=4,
            blocks_per_process=4,
            block_ns=3 * _MS,
            warmup_limit_ns=_S // 5,
            solo_samples=100,
            solo_limit_ns=_S // 3,
            child_limit_ns=120 * _S,
            quiet_limit_ns=_S // 2,
        )
    raise InvalidInput(f"there is no measuring method '{name}'; choose standard or quick", field="method")
