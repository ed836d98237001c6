"""Profiles in a report, computed again as a reader does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from fleetfit.client.verifying import Verification, verify_report
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.build import build_report

from ..server.report.invented import job_facts
from ..server.report.profiled import none_result, profile_result
from ..server.report.raw import raw_result

Raw = measurement_pb2.MeasurementResult


@pytest.fixture(scope="module")
def raws() -> dict[str, Raw]:
    return {"measured": raw_result(), "profile": profile_result()}


def made(raws: dict[str, Raw]) -> dict[str, Any]:
    """One original, with its own measurement and its profile."""
    facts = job_facts()
    device = facts.devices[0]
    one = dataclasses.replace(
        device.candidates[0],
        validation=summarize(raws["measured"]),
        test=None,
        profile=summarize(raws["profile"]),
        raw={kind: (kind, 1) for kind in raws},
    )
    device = dataclasses.replace(device, candidates=(one,), validation_drops=None, test_drops=None)
    report = build_report(dataclasses.replace(facts, kind="bench", devices=(device,), profile=True))
    written: dict[str, Any] = json.loads(report.model_dump_json(by_alias=True))
    return written


def verified(report: dict[str, Any], raws: dict[str, Raw]) -> Verification:
    return verify_report(report, lambda sha256, size_bytes: raws[sha256])


def test_every_figure_of_a_profile_comes_out_as_printed(raws: dict[str, Raw]) -> None:
    found = verified(made(raws), raws)
    assert found.differences == [] and found.results == 2
    without = verified(
        made({"measured": raws["measured"], "profile": none_result()}), raws | {"profile": none_result()}
    )
    assert without.differences == []
    assert found.figures - without.figures >= 15 * 7


@pytest.mark.parametrize(
    ("place", "figure"),
    [
        (("operators", 0, "ms"), "profile.0.ms"),
        (("operators", 3, "share"), "profile.3.share"),
        (("operators", 1, "runs"), "profile.1.runs"),
        (("call_ms",), "profile.call_ms"),
        (("operators_ms",), "profile.operators_ms"),
        (("count",), "profile.count"),
    ],
)
def test_a_figure_that_was_changed_is_found(raws: dict[str, Raw], place: tuple[Any, ...], figure: str) -> None:
    report = made(raws)
    target: Any = report["devices"][0]["candidates"][0]["profile"]
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = target[place[-1]] * 1.01 + 1
    assert [difference.figure for difference in verified(report, raws).differences] == [figure]


def test_a_profile_that_is_missing_or_made_up_is_found(raws: dict[str, Raw]) -> None:
    report = made(raws)
    report["devices"][0]["candidates"][0]["profile"] = None
    assert [difference.figure for difference in verified(report, raws).differences] == ["profile"]
    changed = verified(made(raws), raws | {"profile": none_result()})
    assert [difference.figure for difference in changed.differences] == ["profile.operators"]
