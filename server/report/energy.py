"""The energy of a call as it is stored: see fleetfit.proto.energy."""

from __future__ import annotations

from fleetfit.proto import energy
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.figures import figure
from fleetfit.server.report.summary import EnergySummary


def energy_of_a_call(run: measurement_pb2.EnergyRun) -> EnergySummary | None:
    """Joules of a call above the device at rest, with a 95 % interval; None where too little was read."""
    found = energy.energy_of_a_call(run)
    if found is None:
        return None
    return EnergySummary(
        joules=figure(found.joules),
        idle_watts=found.idle_watts,
        busy_watts=found.busy_watts,
        rounds=found.rounds,
        meter=run.meter,
        covers=run.covers,
    )
