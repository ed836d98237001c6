"""Protocol versions. Version 1 only grows, so these change only when an old peer can no longer be served."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1
# The oldest protocol an agent may speak to this server, and the oldest server protocol an agent accepts.
MINIMUM_PROTOCOL_VERSION: Final = 1

# Named abilities: what either side may rely on in the other beyond the version number.
RETURNS_OUTPUTS: Final = "measure.outputs"
# Builds of two runtimes are timed in turn.
PAIRS_RUNTIMES: Final = "measure.pair.runtimes"
SUSTAINS: Final = "measure.sustained"
# A device that is not fit may be left unmeasured.
REFUSES: Final = "measure.refuse"
SCALES: Final = "measure.scaling"
# A model's parts that are never compressed are timed with it, end to end.
CHAINS: Final = "measure.chain"
# Names its life, and tells a health check from a job's task.
CHECKS_HEALTH: Final = "measure.health"
# Measures the time of each operator.
PROFILES: Final = "measure.profile"
AGENT_CAPABILITIES: Final = (
    "measure.solo",
    "measure.pair",
    "measure.metric",
    RETURNS_OUTPUTS,
    PAIRS_RUNTIMES,
    SUSTAINS,
    REFUSES,
    SCALES,
    CHAINS,
    CHECKS_HEALTH,
    PROFILES,
)
SERVER_CAPABILITIES: Final = ("artifacts.resume", "session.wake")

# The most that an agent returns of the outputs of one build for one split.
MOST_OUTPUT_BYTES: Final = 256 << 20
