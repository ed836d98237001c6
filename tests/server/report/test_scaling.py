"""Scaling curves from raw samples to summary, report and page."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.build import build_report
from fleetfit.server.report.curves import Line, Spot, curves
from fleetfit.server.report.facts import JobFacts
from fleetfit.server.report.model import Report, ScalingReport
from fleetfit.server.report.page import device_pages
from fleetfit.server.report.render import render
from fleetfit.server.report.summary import MeasurementSummary

from .invented import job_facts
from .scaled import scaling_result
from .test_render import chromium as chromium

EMULATED = "how it scales was not measured: the device is emulated"
SCALED = ("original", "pruned-int8")


def scaled_facts() -> JobFacts:
    """The invented job, in which the chosen candidate and the original were scaled on the first device."""
    facts = job_facts()
    first, *others = facts.devices
    found = {name: summarize(scaling_result(ms)) for name, ms in zip(SCALED, (1.0, 0.25), strict=True)}
    candidates = tuple(
        dataclasses.replace(c, scaling=found.get(c.recipe), raw={"scaling": ("ab" * 32, 10)}) for c in first.candidates
    )
    return dataclasses.replace(
        facts, devices=(dataclasses.replace(first, candidates=candidates), *others), scaling=True
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(scaled_facts())


def of(report: Report, recipe: str) -> ScalingReport:
    found = next(c.scaling for c in report.devices[0].candidates if c.recipe == recipe)
    assert found is not None
    return found


def test_a_summary_survives_the_database() -> None:
    summary = summarize(scaling_result())
    assert summary.status == "measured" and summary.latency is None and summary.scaling is not None
    assert MeasurementSummary.model_validate(json.loads(summary.model_dump_json())) == summary
    assert summarize(measurement_pb2.MeasurementResult()).scaling is None


def test_the_report_has_curves_of_the_finalists_alone(report: Report) -> None:
    assert [c.recipe for d in report.devices for c in d.candidates if c.scaling] == list(SCALED)
    found = of(report, "original")
    assert (found.cores, found.trust) == (4, "clean")
    assert [(p.instances, p.threads, p.batch) for p in found.instances.points] == [(1, 4, 1), (2, 2, 1), (4, 1, 1)]
    each = found.instances.points[-1]
    assert each.throughput is not None and each.gain is not None and each.memory_bytes is not None
    assert each.throughput.value == pytest.approx(4 / 0.0014, rel=0.05)
    assert each.gain.value == pytest.approx(4 / 0.0014 * 0.0005, rel=0.05)
    assert each.memory_bytes.value == pytest.approx(36e6)
    assert all(None not in figure.ci95 for figure in (each.throughput, each.gain, each.p50_ms) if figure)
    last = found.batch.points[-1]
    assert (last.status, last.throughput, last.rounds) == ("out_of_memory", None, 0)
    assert "more memory" in last.message and found.batch.ended == "the next needs more memory than there is"


def test_a_finalist_that_was_not_scaled_says_so(report: Report) -> None:
    emulated = report.devices[1]
    silent = [c.recipe for c in emulated.candidates if any(n == EMULATED for n in c.notes)]
    assert silent == ["original"], "nothing is chosen for an emulated device"
    assert not any("how it scales" in note for c in report.devices[0].candidates for note in c.notes)
    unscaled = dataclasses.replace(scaled_facts().devices[1], emulated=False)
    first, *others = unscaled.candidates
    failed = (dataclasses.replace(first, no_scaling_because="the runtime crashed on the build"), *others)
    for device, why in (
        (unscaled, "the job's time was over before"),
        (dataclasses.replace(unscaled, scales=False), "its agent is too old to do it; update fleetfit there"),
        (dataclasses.replace(unscaled, candidates=failed), "the runtime crashed on the build"),
    ):
        notes = build_report(dataclasses.replace(scaled_facts(), devices=(device,))).devices[0].candidates[0].notes
        assert f"how it scales was not measured: {why}" in notes
    unasked = build_report(dataclasses.replace(scaled_facts(), scaling=False))
    assert not any("how it scales" in note for d in unasked.devices for c in d.candidates for note in c.notes)


def test_one_round_has_no_interval() -> None:
    summary = summarize(scaling_result(rounds=1))
    assert summary.scaling is not None
    point = summary.scaling.threads.points[1]
    assert point.throughput is not None and (point.throughput.low, point.throughput.high) == (None, None)


def test_a_report_of_a_newer_server_stays_readable(report: Report) -> None:
    written = json.loads(report.model_dump_json(by_alias=True))
    written["devices"][0]["candidates"][0]["scaling"]["threads"]["later"] = 1
    assert Report.model_validate(written).devices[0].candidates[0].scaling == of(report, "original")


def test_the_page_has_four_charts_and_every_point_as_text(report: Report) -> None:
    with_curves, without = (page.scaling for page in device_pages(report))
    assert (without.charts, without.scaled) == ([], [])
    assert len(with_curves.charts) == 4
    assert [one.css for one in with_curves.scaled] == ["line-0", "selected"]
    throughput, _, _, memory = with_curves.charts
    assert throughput.count("<circle") == 2 * 3 and throughput.count('class="ci"') == 2 * 3
    assert "memory of each process, MB" in memory
    # The batch of 4 did not fit: a cross, and its reason in words.
    assert with_curves.charts[1].count('class="missed"') == 2
    html = render(report)
    assert "How it scales" in html and html.count("the build needs more memory than the device has free") >= 2
    assert "4 processes, 1 thread, batch 1" in html and "that is all 4 usable cores" in html


def test_charts_of_odd_figures() -> None:
    assert curves([], heading="h", x="x") == ""
    assert curves([Line("line-0", [Spot(1, None, "it failed")])], heading="h", x="x") == ""
    wide = curves([Line("line-0", [Spot(1, 5.0, "<b>", (0.01, 1e9)), Spot(6, 9.0, "t")])], heading="h", x="x")
    assert "&lt;b&gt;" in wide and "nan" not in wide and "inf" not in wide
    assert all(0 <= float(y) <= 240 for y in re.findall(r'(?:cy|y1|y2)="([^"]+)"', wide))
    assert ">40k<" in curves([Line("line-0", [Spot(1, 70_000.0, "t")])], heading="h", x="x")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_curves_fit_phones_and_desks(tmp_path: Path, chromium: object, report: Report, width: int, scheme: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(report))
    shown = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[attr-defined]
    shown.goto(file.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    boxes = shown.evaluate(
        "[...document.querySelectorAll('svg.small')].map(s => s.getBoundingClientRect()).map(b => [b.left, b.right, b.width])"
    )
    assert len(boxes) == 4
    assert all(left >= 0 and right <= width and wide >= 300 for left, right, wide in boxes)
    assert len({round(left) for left, _, _ in boxes}) == (1 if width < 500 else 2), (
        "below each other, or in two columns"
    )
    cut = shown.evaluate(
        """[...document.querySelectorAll('svg.small text')].filter(t => {
             const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
             return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
           }).map(t => t.textContent)"""
    )
    assert cut == []
    shown.close()
