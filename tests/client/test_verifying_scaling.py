"""Scaling curves in a report, computed again as a reader does."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from fleetfit.client.verifying import Verification, verify_report
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.build import build_report

from ..server.report.invented import job_facts
from ..server.report.raw import raw_result
from ..server.report.scaled import scaling_result

Raw = measurement_pb2.MeasurementResult


@pytest.fixture(scope="module")
def raws() -> dict[str, Raw]:
    return {"measured": raw_result(), "scaling": scaling_result()}


@pytest.fixture
def report(raws: dict[str, Raw]) -> dict[str, Any]:
    """One original, with its own measurement and its curves."""
    facts = job_facts()
    device = facts.devices[0]
    one = dataclasses.replace(
        device.candidates[0],
        validation=summarize(raws["measured"]),
        test=None,
        scaling=summarize(raws["scaling"]),
        raw={kind: (kind, 1) for kind in raws},
    )
    device = dataclasses.replace(device, candidates=(one,), validation_drops=None, test_drops=None)
    made = build_report(dataclasses.replace(facts, kind="bench", devices=(device,), scaling=True))
    written: dict[str, Any] = json.loads(made.model_dump_json(by_alias=True))
    return written


def verified(report: dict[str, Any], raws: dict[str, Raw]) -> Verification:
    return verify_report(report, lambda sha256, size_bytes: raws[sha256])


def scaling(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["devices"][0]["candidates"][0]["scaling"]
    return found


def test_every_figure_of_the_curves_comes_out_as_printed(report: dict[str, Any], raws: dict[str, Raw]) -> None:
    found = verified(report, raws)
    assert found.differences == [] and found.results == 2
    without = copy.deepcopy(report)
    candidate = without["devices"][0]["candidates"][0]
    candidate["scaling"] = None
    del candidate["raw"]["scaling"]
    # Nine points, of which one failed.
    assert found.figures - verified(without, raws).figures >= 8 * 15


@pytest.mark.parametrize(
    ("place", "figure"),
    [
        (("threads", "points", 1, "throughput", "value"), "scaling.threads.1.throughput.value"),
        (("threads", "points", 2, "gain", "ci95", 0), "scaling.threads.2.gain.ci95"),
        (("batch", "points", 1, "p95_ms", "value"), "scaling.batch.1.p95_ms.value"),
        (("instances", "points", 2, "memory_bytes", "value"), "scaling.instances.2.memory_bytes.value"),
        (("instances", "points", 1, "instances"), "scaling.instances.1.instances"),
    ],
)
def test_a_figure_that_was_changed_is_found(
    report: dict[str, Any], raws: dict[str, Raw], place: tuple[Any, ...], figure: str
) -> None:
    target: Any = scaling(report)
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = target[place[-1]] * 1.01 + 1
    assert [difference.figure for difference in verified(report, raws).differences] == [figure]


def test_a_point_that_was_left_out_or_made_up_is_found(report: dict[str, Any], raws: dict[str, Raw]) -> None:
    scaling(report)["threads"]["points"].pop()
    scaling(report)["batch"]["points"][2]["throughput"] = {"value": 1.0, "ci95": [0.9, 1.1]}
    changed = {difference.figure for difference in verified(report, raws).differences}
    assert changed == {"scaling.threads.points", "scaling.batch.2.throughput"}


def test_curves_that_are_missing_are_found(report: dict[str, Any], raws: dict[str, Raw]) -> None:
    report["devices"][0]["candidates"][0]["scaling"] = None
    assert [difference.figure for difference in verified(report, raws).differences] == ["scaling"]
