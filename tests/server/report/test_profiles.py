"""Profiles of operators from raw times to summary, report and page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.build import build_report
from fleetfit.server.report.facts import JobFacts
from fleetfit.server.report.model import ProfileReport, Report
from fleetfit.server.report.page import device_pages
from fleetfit.server.report.render import render
from fleetfit.server.report.summary import MeasurementSummary

from .invented import job_facts
from .profiled import none_result, profile_result
from .test_render import Balance
from .test_render import chromium as chromium

PROFILED = ("original", "pruned-int8")


def profiled_facts(second: measurement_pb2.MeasurementResult | None = None) -> JobFacts:
    """The invented job, in which the chosen candidate and the original were profiled on the first device."""
    facts = job_facts()
    first, *others = facts.devices
    found = dict(zip(PROFILED, map(summarize, (profile_result(2.0), second or profile_result(0.5))), strict=True))
    candidates = tuple(
        dataclasses.replace(c, profile=found.get(c.recipe), raw={"profile": ("ab" * 32, 10)}) for c in first.candidates
    )
    return dataclasses.replace(
        facts, devices=(dataclasses.replace(first, candidates=candidates), *others), profile=True
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(profiled_facts())


def of(report: Report, recipe: str) -> ProfileReport:
    found = next(c.profile for c in report.devices[0].candidates if c.recipe == recipe)
    assert found is not None
    return found


def test_a_summary_survives_the_database() -> None:
    for raw in (profile_result(), none_result()):
        summary = summarize(raw)
        assert summary.status == "measured" and summary.latency is None and summary.profile is not None
        assert MeasurementSummary.model_validate(json.loads(summary.model_dump_json())) == summary
    assert summarize(measurement_pb2.MeasurementResult()).profile is None


def test_a_network_of_thousands_of_operators_is_cut_to_its_largest() -> None:
    raw = profile_result()
    for at in range(2000):
        raw.profile.operators.add(name=f"small_{at}", runs=1, total_ns=1)
    found = summarize(raw).profile
    assert found is not None
    assert (len(found.operators), found.count) == (100, 2015)
    assert found.operators_ms == pytest.approx(1, rel=1e-3)


def test_the_report_has_profiles_of_the_finalists_alone(report: Report) -> None:
    assert [c.recipe for d in report.devices for c in d.candidates if c.profile] == list(PROFILED)
    found = of(report, "original")
    assert (found.count, found.calls, found.trust, found.not_offered_because) == (15, 15, "clean", "")
    assert (found.operators_ms, found.call_ms) == (pytest.approx(2), pytest.approx(2.4))
    first = found.operators[0]
    assert (first.operator, first.placed, first.number_format, first.runs) == ("Conv", "CPU", "float32", 1)
    assert (first.ms, first.share) == (pytest.approx(0.8), pytest.approx(0.4))
    assert sum(one.share for one in found.operators) == pytest.approx(1)
    assert any("whole microseconds" in note for note in found.notes)


def test_a_finalist_that_was_not_profiled_says_so(report: Report) -> None:
    (emulated,) = (c for c in report.devices[1].candidates if any("operators were not timed" in n for n in c.notes))
    assert emulated.recipe == "original" and "its operators were not timed: the device is emulated" in emulated.notes
    assert not any("operators were not timed" in n for c in report.devices[0].candidates for n in c.notes)
    without = build_report(profiled_facts(none_result()))
    chosen = next(c for c in without.devices[0].candidates if c.recipe == "pruned-int8")
    assert chosen.profile is not None and chosen.profile.operators == []
    assert "NCNN_BENCHMARK" in chosen.profile.not_offered_because
    assert any(n.startswith("its operators were not timed: ncnn's package") for n in chosen.notes)
    unprofiled = dataclasses.replace(profiled_facts().devices[1], emulated=False)
    first, *others = unprofiled.candidates
    failed = (dataclasses.replace(first, no_profile_because="its disk is full"), *others)
    for device, why in (
        (unprofiled, "the job's time was over before"),
        (dataclasses.replace(unprofiled, profiles=False), "its agent is too old to do it; update fleetfit there"),
        (dataclasses.replace(unprofiled, candidates=failed), "its disk is full"),
    ):
        notes = build_report(dataclasses.replace(profiled_facts(), devices=(device,))).devices[0].candidates[0].notes
        assert f"its operators were not timed: {why}" in notes
    unasked = build_report(dataclasses.replace(profiled_facts(), profile=False))
    assert not any("operators were" in n for d in unasked.devices for c in d.candidates for n in c.notes)


def test_the_page_shows_the_largest_ten_and_the_rest(report: Report) -> None:
    with_profiles, without = (page.profile for page in device_pages(report))
    assert without == []
    chosen, original = with_profiles
    assert (chosen.name, chosen.css, original.name, original.css) == ("pruned-int8", "selected", "original", "")
    assert len(original.rows) == 10 and original.rest == ("5 others", "0.180 ms", "9.0 %")
    assert [row.width for row in original.rows][:2] == ["100.0", "62.5"]
    assert chosen.rows[0].width == "25.0", "bars compare the builds"
    assert original.rows[0].share == "40 %" and original.rows[0].about == "Conv, float32, CPU"
    html = render(report)
    checker = Balance()
    checker.feed(html)
    assert checker.open == []
    assert "Where the time goes" in html and "do not add up to the latency" in html
    assert html.count("<rect") == 20 and "conv_with_a_long_name" in html
    assert "with the profiler on, where one takes" in html


def test_the_page_says_why_there_is_no_profile() -> None:
    html = render(build_report(profiled_facts(none_result("the <runtime> has none"))))
    assert "Not timed: the &lt;runtime&gt; has none." in html and html.count("<rect") == 10


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_profiles_fit_phones_and_desks(
    tmp_path: Path, chromium: object, report: Report, width: int, scheme: str
) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(report))
    shown = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[attr-defined]
    shown.goto(file.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    boxes = shown.evaluate(
        "[...document.querySelectorAll('.profiles > div')].map(s => s.getBoundingClientRect()).map(b => [b.left, b.right, b.top])"
    )
    assert len(boxes) == 2 and all(left >= 0 and right <= width for left, right, _ in boxes)
    assert len({round(top) for *_, top in boxes}) == (2 if width < 500 else 1), "below each other, or side by side"
    bars = shown.evaluate("[...document.querySelectorAll('svg.share')].map(s => s.getBoundingClientRect().width)")
    assert len(bars) == 20 and min(bars) > 60
    shown.close()
