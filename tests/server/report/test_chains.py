"""A model with parts in reports: figures from raw samples, what is noted where there are none, which limit means what."""

from __future__ import annotations

import dataclasses

import pytest

from fleetfit.proto.chains import chain_ratio, chain_samples
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.build import build_report
from fleetfit.server.report.facts import DeviceFacts, JobFacts, LimitFacts
from fleetfit.server.report.model import CandidateReport, Report
from fleetfit.server.report.render import render
from fleetfit.server.report.summary import MeasurementSummary

from .invented import device_facts, job_facts
from .raw import add_chain, raw_result

PARTS = {"pre": ("a" * 64, 1000), "post": ("b" * 64, 2000)}


def chained(ratio: float | None = 1.5, **more: int) -> MeasurementSummary:
    return summarize(add_chain(raw_result(ratio=2.0), ratio=ratio, **more))


def test_the_chain_is_summed_up_beside_the_model_alone() -> None:
    raw = add_chain(raw_result(ratio=2.0))
    summary = summarize(raw)
    alone, whole = summarize(raw_result(ratio=2.0)), summary.chain
    assert whole is not None and summary.latency == alone.latency and summary.ratio == alone.ratio
    assert whole.p50_ms.value == pytest.approx(6.1, rel=0.03) and whole.p95_ms is not None
    assert whole.samples == 6 * 6 * 5 and whole.processes == 6
    assert {name: part.p50_ms.value for name, part in whole.parts.items()} == {
        "pre": pytest.approx(2, rel=0.03), "core": pytest.approx(1, rel=0.03), "post": pytest.approx(3, rel=0.03),
    }  # fmt: skip
    assert whole.ratio is not None and whole.ratio.low is not None and whole.ratio.high is not None
    assert whole.ratio.low < 1.5 < whole.ratio.high
    assert whole.ratio.high / whole.ratio.low < 1.05
    assert len(chain_samples(raw)) == 6


def test_a_chain_without_the_originals_has_no_ratio() -> None:
    raw = add_chain(raw_result(), ratio=None)
    assert chain_ratio(raw) is None
    whole = summarize(raw).chain
    assert whole is not None and whole.ratio is None


def test_few_samples_carry_no_percentile() -> None:
    summary = chained(processes=4)
    assert summary.chain is not None and summary.chain.p95_ms is None
    assert "p95 end to end is not given: 120 samples cannot carry it" in summary.notes


def test_why_there_is_no_chain_is_noted() -> None:
    raw = raw_result()
    raw.no_chain_because = "onnxruntime cannot be used on this device: pip install it"
    summary = summarize(raw)
    assert summary.chain is None
    assert "end to end was not measured: onnxruntime cannot be used on this device: pip install it" in summary.notes


def job(limits: LimitFacts, *, parts: bool = True, chains: bool = True) -> tuple[JobFacts, DeviceFacts]:
    device = device_facts("lab", 1, 0.4)
    candidates = []
    for c in device.candidates:
        if c.validation is not None and chains:
            ratio = None if c.role == "original" else 1.5
            c = dataclasses.replace(c, validation=c.validation.model_copy(update={"chain": chained(ratio).chain}))
        candidates.append(c)
    device = dataclasses.replace(device, candidates=tuple(candidates))
    facts = dataclasses.replace(job_facts(), devices=(device,), limits=limits, parts=PARTS if parts else {})
    return facts, device


def report(limits: LimitFacts, *, parts: bool = True, chains: bool = True) -> Report:
    return build_report(job(limits, parts=parts, chains=chains)[0])


def candidate(made: Report, recipe: str) -> CandidateReport:
    return next(c for c in made.devices[0].candidates if c.recipe == recipe)


LOOSE = LimitFacts(max_drop_points=1.0, parted=True)


def test_both_latencies_stand_in_the_report() -> None:
    made = report(LOOSE)
    found = candidate(made, "pruned-int8")
    assert found.latency_ms is not None and found.latency_ms.p50 < 0.5
    assert found.end_to_end_ms is not None and found.end_to_end_ms.p50 == pytest.approx(6.1, rel=0.03)
    assert found.end_to_end_ms.speedup is not None and not found.end_to_end_ms.speedup.tie
    assert found.parts_ms is not None and found.parts_ms.pre is not None and found.parts_ms.post is not None
    original = candidate(made, "original")
    assert original.end_to_end_ms is not None and original.end_to_end_ms.speedup is not None
    assert (original.end_to_end_ms.speedup.ratio, original.end_to_end_ms.speedup.ci95) == (1.0, (1.0, 1.0))
    assert {name: part.sha256[0] for name, part in made.parts.items()} == {"pre": "a", "post": "b"}
    assert "End to end, with its pre and post parts, a call takes 6." in made.devices[0].why
    assert "times as fast as the original's (1." in made.devices[0].why


def test_a_limit_says_which_latency_it_means() -> None:
    alone = report(dataclasses.replace(LOOSE, p95_ms=0.15))
    assert alone.devices[0].selected == candidate(alone, "pruned-int8").variant
    assert "The limit on p95 was 0.15 ms for the model alone." in alone.devices[0].why
    slow = candidate(alone, "pruned")
    assert any("p95, without its pre and post parts, is" in reason for reason in slow.rejected_because)
    whole = report(dataclasses.replace(LOOSE, p95_end_to_end_ms=8.0))
    assert whole.devices[0].selected is not None
    assert "The limit on p95 was 8 ms end to end." in whole.devices[0].why
    tight = report(dataclasses.replace(LOOSE, p95_ms=0.15, p95_end_to_end_ms=5.0))
    assert tight.devices[0].selected is None
    reasons = candidate(tight, "pruned-int8").rejected_because
    assert any("its p95 end to end is 6." in reason and "5 ms is allowed" in reason for reason in reasons)
    assert "--p95-end-to-end-ms 6." in tight.devices[0].why
    both = report(dataclasses.replace(LOOSE, p95_ms=0.15, p95_end_to_end_ms=8.0))
    assert "The limit on p95 was 0.15 ms for the model alone and 8 ms end to end." in both.devices[0].why


def test_without_parts_nothing_is_said_of_them() -> None:
    made = report(LimitFacts(max_drop_points=1.0, p95_ms=0.15), parts=False, chains=False)
    assert made.parts == {} and all(c.end_to_end_ms is None for c in made.devices[0].candidates)
    text = made.model_dump_json()
    assert "end to end" not in text.lower() and "without its pre" not in text


def test_a_limit_that_nothing_was_measured_for_keeps_everything_out() -> None:
    made = report(dataclasses.replace(LOOSE, p95_end_to_end_ms=8.0), chains=False)
    assert made.devices[0].selected is None
    found = candidate(made, "pruned-int8")
    assert any("end to end it was not measured" in reason for reason in found.rejected_because)
    assert "end to end was not measured: the agent is older; update it" in found.notes


def test_a_benchmark_tells_both() -> None:
    facts, _ = job(LOOSE)
    why = build_report(dataclasses.replace(facts, kind="bench")).devices[0].why
    assert ", end to end p50 6." in why


def test_the_page_shows_both() -> None:
    page = render(report(dataclasses.replace(LOOSE, p95_ms=0.15, p95_end_to_end_ms=8.0)))
    assert "p95 of the model alone at most 0.15 ms" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "p95 end to end at most 8 ms" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "end to end against<br>the original" in page and "parts alone" in page
    assert "parts alone" not in render(report(LimitFacts(), parts=False, chains=False))
