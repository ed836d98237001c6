from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fleetfit.server.report.build import build_report
from fleetfit.server.report.chart import Axes, Point, scatter, ticks
from fleetfit.server.report.facts import JobFacts, LimitFacts
from fleetfit.server.report.render import render
from fleetfit.server.report.summary import EnergySummary, Figure

from .invented import job_facts

VOID = {"meta", "line", "circle", "path", "br", "link", "img", "input", "hr"}


def page(facts: JobFacts | None = None) -> str:
    return render(build_report(facts or job_facts()))


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else() -> None:
    text = page()
    checker = Balance()
    checker.feed(text)
    assert checker.open == []
    assert "<script" not in text and "<link" not in text and "url(" not in text and "@import" not in text
    assert not re.search(r'(src|href)="(?!#)', text)


def test_the_page_says_what_matters() -> None:
    text = page()
    report = build_report(job_facts())
    assert text.index("pruned-int8 runs 3.92 times as fast") < text.index("<svg")
    for part in (
        "Emulated: the timings of this device mean nothing",
        "no kernel for ConvInteger",
        "Why not the others",
    ):
        assert part in text
    for candidate in report.devices[0].candidates:
        assert candidate.variant in text
    assert text.count('class="chart wide"') == 2 and text.count('class="chart narrow"') == 2


def test_names_cannot_become_markup() -> None:
    facts = job_facts()
    evil = "<script>alert(1)</script>\"'&"
    renamed = tuple(
        dataclasses.replace(c, recipe=evil, reason=evil, notes=(evil,)) for c in facts.devices[0].candidates
    )
    device = dataclasses.replace(facts.devices[0], name=evil, profile=evil, candidates=renamed)
    text = page(dataclasses.replace(facts, model=evil, devices=(device,)))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    checker = Balance()
    checker.feed(text)
    assert checker.open == []


@pytest.mark.parametrize("kind", ["no metric", "bench", "nothing", "cancelled", "percent"])
def test_every_kind_of_report_renders(kind: str) -> None:
    facts = job_facts()
    device = facts.devices[0]
    if kind == "no metric":
        facts = dataclasses.replace(
            facts, metric="", limits=LimitFacts(),
            devices=(dataclasses.replace(device, validation_drops=None, test_drops=None),),
        )  # fmt: skip
        assert "size of the build, MB" in page(facts)
    elif kind == "bench":
        facts = dataclasses.replace(
            facts, kind="bench", devices=(dataclasses.replace(device, candidates=device.candidates[:1]),)
        )
        assert "Measured as it is" in page(facts)
    elif kind == "nothing":
        assert "on 0 devices" in page(dataclasses.replace(facts, devices=()))
    elif kind == "cancelled":
        skipped = tuple(dataclasses.replace(c, state="skipped", validation=None, test=None) for c in device.candidates)
        assert "skipped" in page(
            dataclasses.replace(
                facts, devices=(dataclasses.replace(device, candidates=skipped, validation_drops=None),)
            )
        )
    else:
        limits = LimitFacts(max_drop_percent=2, p95_ms=3.5, max_peak_memory_bytes=10**7, max_size_bytes=10**6)
        text = page(dataclasses.replace(facts, limits=limits))
        for part in ("2 % of the original", "p95 at most 3.5 ms", "memory at most 10.0 MB", "size at most 1.00 MB"):
            assert part in text


def test_charts_hold_extremes() -> None:
    axes = Axes("x", "y", 1.0, "limit: 1")
    assert scatter([], axes, width=350, height=300, css="c") == ""
    alone = scatter([Point("1", "one", "selected", 0.0, 0.0)], axes, width=350, height=300, css="c")
    outlier = scatter(
        [Point(str(n), "t", "rejected", 1.0, y) for n, y in enumerate((0.1, 0.2, 0.3, 0.4, 1e6))],
        axes, width=350, height=300, css="c",
    )  # fmt: skip
    for svg in (alone, outlier):
        assert "nan" not in svg and "inf" not in svg
    assert "<path" in outlier and "(1000000)" in outlier
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-0.3, 0.9, 4) == [0.0, 0.5]
    assert ticks(1, 1) == [1]


def test_the_child(tmp_path: Path) -> None:
    source, out = tmp_path / "report.json", tmp_path / "report.html"
    report = build_report(job_facts())
    source.write_text(report.model_dump_json(by_alias=True))
    subprocess.run([sys.executable, "-m", "fleetfit.server.report.render", str(source), str(out)], check=True)
    assert out.read_text() == render(report)


@pytest.fixture
def chromium() -> Iterator[object]:
    """A browser for one test: one that lives on starts helpers of its own, which look like a later test's leak."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here; CI installs it (make ci-deps)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (768, "light"), (1280, "light"), (1280, "dark")])
def test_it_fits_phones_and_desks(tmp_path: Path, chromium: object, width: int, scheme: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(page())
    shown = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[attr-defined]
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(file.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert said == [] and asked == [file.as_uri()]
    charts = shown.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0).length"
    )
    assert charts == 2
    # No label of a chart is cut off.
    cut = shown.evaluate(
        """[...document.querySelectorAll('svg text')].filter(t => {
             const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
             return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1);
           }).map(t => t.textContent)"""
    )
    assert cut == []
    shown.close()


def test_energy_stands_on_the_page_where_it_was_measured() -> None:
    assert "energy<br>of a call" not in page()
    facts = job_facts()
    first = facts.devices[0].candidates[0]
    assert first.validation is not None
    energy = EnergySummary(
        joules=Figure(value=0.0124, low=0.0121, high=0.0127),
        idle_watts=2.0, busy_watts=6.5, rounds=6, meter="rails", covers="module input (VDD_IN)",
    )  # fmt: skip
    metered = dataclasses.replace(first, validation=first.validation.model_copy(update={"energy": energy}))
    candidates = (metered, *facts.devices[0].candidates[1:])
    devices = (dataclasses.replace(facts.devices[0], candidates=candidates), *facts.devices[1:])
    text = page(dataclasses.replace(facts, devices=devices))
    for words in ("energy<br>of a call", "12.4 mJ", "12.1 mJ to 12.7 mJ", "rails: module input (VDD_IN)", "6.500 W"):
        assert words in text
