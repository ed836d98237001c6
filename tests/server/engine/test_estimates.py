from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from fleetfit.compress.recipe import Recipe
from fleetfit.proto.v1 import jobs_pb2, snapshot_pb2
from fleetfit.server.engine.estimates import plan_message
from fleetfit.server.engine.planning import PlannedCandidate, PlannedData, PlannedDevice, PlannedModel
from fleetfit.server.engine.progress import Pace

MakeSnapshot = Callable[..., snapshot_pb2.DeviceSnapshot]
PACE = Pace(measure_s=7.0)


def candidate(device: PlannedDevice) -> PlannedCandidate:
    return PlannedCandidate(device, Recipe.original(), "original", "key", "onnxruntime", 1, 1)


def planned(
    model: PlannedModel, data: PlannedData | None, *devices: PlannedDevice, device_samples: int = 0
) -> jobs_pb2.Plan:
    candidates = [candidate(device) for device in devices]
    return plan_message(candidates, model, data, {"key"}, PACE, ["first"], device_samples=device_samples)


@pytest.mark.parametrize(("samples", "share"), [(0, 1.0), (5, 0.25), (20, 1.0), (1000, 1.0)])
def test_fewer_samples_are_fetched_and_judged_by(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice, samples: int, share: float
) -> None:
    """Validation and test have 20 samples of 1000 bytes in all, each; the network is large, so that judging takes 80 s."""
    facts = planned_model.facts.model_copy(update={"macs": 80_000_000_000})
    large = dataclasses.replace(planned_model, facts=facts)
    plan = planned(large, planned_data, planned_device, device_samples=samples)
    (one,) = plan.candidates
    assert one.download_bytes == int(2 * 1000 * share) + one.expected_size_bytes
    assert one.expected_measure_ms == int(1000 * (PACE.measure_s + 80 * share)) == plan.expected_total_ms


def test_without_data_nothing_is_judged(planned_model: PlannedModel, planned_device: PlannedDevice) -> None:
    (one,) = planned(planned_model, None, planned_device, device_samples=5).candidates
    assert (one.download_bytes, one.expected_measure_ms) == (one.expected_size_bytes, 7000)


def test_a_device_that_is_set_aside_is_waited_for_and_nobody_knows_how_long(
    planned_model: PlannedModel, planned_device: PlannedDevice, make_snapshot: MakeSnapshot
) -> None:
    aside = PlannedDevice("2", "attic", make_snapshot(), set_aside="it was 30 % slower than before")
    plan = planned(planned_model, None, planned_device, aside, aside)
    assert plan.expected_total_ms == 7000
    assert list(plan.notes)[:2] == [
        "attic is set aside (it was 30 % slower than before) and gets no work until it passes a health check or a person clears "
        "it: `fleetfit devices show attic`; what it would take is not in the time expected",
        "first",
    ]
    assert planned(planned_model, None, planned_device).notes[0] == "first"
