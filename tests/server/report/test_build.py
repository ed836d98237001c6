from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from fleetfit.server.report.build import build_report
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, RecoveredFrom
from fleetfit.server.report.model import Report
from fleetfit.server.report.render import render
from fleetfit.server.report.summary import Figure, Sampling, Sustained

from .invented import job_facts

# The object of the design, field by field: names may be added, never lost.
REPORT = {"schema", "job", "model", "metric", "devices"}
DEVICE = {"device", "profile", "snapshot", "emulated", "selected", "why", "candidates"}
CANDIDATE = {
    "variant", "recipe", "runtime", "baseline", "status", "condition", "metric", "test_metric", "size_bytes", "parameters",
    "latency_ms", "speedup", "peak_memory_bytes", "trust", "tie_with", "meets_limits", "rejected_because", "notes",
}  # fmt: skip


def built() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(build_report(job_facts()).model_dump_json(by_alias=True))
    return found


def test_the_object_has_the_agreed_shape() -> None:
    report = built()
    assert report.keys() >= REPORT and report["schema"] == 1
    assert report["metric"] == {"name": "accuracy", "unit": "points", "higher_is_better": True}
    assert report["limits"]["max_drop_points"] == 1.0 and report["objective"] == "latency"
    assert report["created"] == "2026-11-18T11:06:40+00:00"
    for device in report["devices"]:
        assert device.keys() >= DEVICE
        for candidate in device["candidates"]:
            assert candidate.keys() >= CANDIDATE
            assert candidate["condition"].keys() >= {"threads", "batch", "power_mode"}
            assert candidate["speedup"].keys() == {"original", "best_uncompressed", "incumbent"}
            if candidate["status"] != "measured":
                continue
            assert candidate["metric"].keys() >= {"value", "ci95", "n", "split", "where"}
            assert candidate["metric"]["split"] == "validation" and candidate["metric"]["where"] == "device"
            assert candidate["latency_ms"].keys() >= {"p50", "p95", "p99", "ci95", "samples", "processes"}
            low, high = candidate["speedup"]["original"]["ci95"]
            assert low <= candidate["speedup"]["original"]["ratio"] <= high


def test_a_missing_figure_is_explained() -> None:
    for device in built()["devices"]:
        for candidate in device["candidates"]:
            notes = " ".join(candidate["notes"])
            assert candidate["notes"]
            if candidate["status"] == "measured":
                assert "no ratio against it" in notes
                if candidate["latency_ms"]["p99"] is None:
                    assert "p99" in notes
                if candidate["test_metric"] is None:
                    assert "test split" in notes
            else:
                assert "no kernel for ConvInteger" in notes and candidate["latency_ms"] is None


def test_the_selected_variant_is_one_candidate() -> None:
    first, second = built()["devices"]
    chosen = [c for c in first["candidates"] if c["selected"]]
    assert [c["variant"] for c in chosen] == [first["selected"]]
    assert chosen[0]["recipe"] == "pruned-int8" and not chosen[0]["rejected_because"] and chosen[0]["meets_limits"]
    assert chosen[0]["drop"] == {"value": 0.55, "ci95": [0.24, 0.86], "against": "original-retrained"}
    assert chosen[0]["test_metric"]["split"] == "test" and chosen[0]["test_drop"]
    assert second["emulated"] and second["selected"] is None and "mean nothing" in second["why"]
    for device in (first, second):
        for c in device["candidates"]:
            assert bool(c["rejected_because"]) == (not c["baseline"] and not c["selected"])


def test_baselines() -> None:
    baselines = [c for c in built()["devices"][0]["candidates"] if c["baseline"]]
    assert [(c["recipe"], c["role"]) for c in baselines] == [
        ("original", "original"),
        ("original-retrained", "control"),
    ]
    assert baselines[0]["speedup"]["original"] == {"ratio": 1.0, "ci95": [1.0, 1.0], "tie": False}
    assert any("timed beside itself" in note and "as it should" in note for note in baselines[0]["notes"])


def test_what_came_back_from_its_users_training_says_what_its_loss_is_against() -> None:
    device = job_facts().devices[0]
    back = RecoveredFrom("r" * 10, "v" * 10, "f" * 64)

    def notes(*recipes: str, against: str) -> dict[str, list[str]]:
        """Of a report where these recipes were trained by their user, and all losses are against the candidate `against`."""
        made = tuple(dataclasses.replace(c, recovered=back if c.recipe in recipes else None) for c in device.candidates)
        reference = next(c.id for c in made if c.recipe == against)
        drops = device.validation_drops
        assert drops is not None
        drops = drops.model_copy(update={"against": reference, "references": {c.id: reference for c in made}})
        changed = dataclasses.replace(device, candidates=made, validation_drops=drops)
        report = build_report(dataclasses.replace(job_facts(), devices=(changed,)))
        for c in report.devices[0].candidates:
            assert (c.recovered is not None) == (c.recipe in recipes)
        return {c.recipe: c.notes for c in report.devices[0].candidates}

    alone = notes("pruned", against="original")["pruned"][0]
    assert alone.startswith(f"made of the file {'f' * 10}, the network of the variant {'v' * 10} after training: ")
    assert (
        "would gain as much" in alone and f"`fleetfit models pull {device.candidates[0].variant} --trainable`" in alone
    )
    both = notes("pruned", "original-retrained", against="original-retrained")
    assert (
        "its loss is against the original that its user trained, which is fair if both were trained alike"
        in both["pruned"][0]
    )
    assert "a fair control for what the user trained alike, and for nothing else" in both["original-retrained"][0]
    assert "fair control" not in " ".join(both["low-rank"])


def test_a_device_that_cannot_tell_one_from_itself_is_shown_up() -> None:
    facts = job_facts()

    def biased(c: CandidateFacts) -> CandidateFacts:
        assert c.validation is not None and c.validation.ratio is not None
        wrong = c.validation.ratio.model_copy(update={"value": 1.1, "low": 1.05, "high": 1.15})
        return dataclasses.replace(c, validation=c.validation.model_copy(update={"ratio": wrong}))

    device: DeviceFacts = facts.devices[0]
    candidates = (biased(device.candidates[0]), *device.candidates[1:])
    report = build_report(dataclasses.replace(facts, devices=(dataclasses.replace(device, candidates=candidates),)))
    assert "differences of this size mean nothing" in " ".join(report.devices[0].candidates[0].notes)
    (control,) = report.devices[0].controls
    assert (control.ratio.ratio, control.ratio.ci95, control.ratio.tie) == (1.1, (1.05, 1.15), False)
    assert report.devices[0].doubt == (
        "Doubtful: timed beside itself the original came out 1.10 times as fast (1.05 to 1.15), and equal builds cannot differ. "
        "Trust no ratio that is not far beyond this; make the device quiet and measure again."
    )


def test_every_device_has_its_control() -> None:
    for device in build_report(job_facts()).devices:
        (control,) = device.controls
        assert control.ratio.tie and "as it should" in control.words and device.doubt == ""
        assert (control.runtime, control.ratio.ratio) == ("onnxruntime", 1.003)


def test_a_device_without_a_control_says_so() -> None:
    facts = job_facts()
    device = facts.devices[0]
    original = device.candidates[0]
    assert original.validation is not None
    alone = dataclasses.replace(original, validation=original.validation.model_copy(update={"ratio": None}))
    candidates = (alone, *device.candidates[1:])
    report = build_report(dataclasses.replace(facts, devices=(dataclasses.replace(device, candidates=candidates),)))
    assert report.devices[0].controls == [] and "No original was timed beside itself" in report.devices[0].doubt


def test_ties_are_called_ties() -> None:
    candidates = {c.recipe: c for c in build_report(job_facts()).devices[0].candidates}
    ties = {name for name, c in candidates.items() if c.speedup.original and c.speedup.original.tie}
    assert ties == {"original-retrained", "low-rank"}
    assert "a tie: its interval holds 1" in candidates["low-rank"].rejected_because[0]


def test_how_sampling_ended_stands_in_the_report() -> None:
    facts = job_facts()
    device = facts.devices[0]
    sampling = Sampling(end="time", asked=0.01, reached=0.02, processes=10)
    candidates = tuple(
        dataclasses.replace(c, validation=c.validation and c.validation.model_copy(update={"sampling": sampling}))
        for c in device.candidates
    )
    report = build_report(dataclasses.replace(facts, devices=(dataclasses.replace(device, candidates=candidates),)))
    found = report.devices[0].candidates[3].sampling
    assert found is not None and found.model_dump() == sampling.model_dump()
    assert build_report(facts).devices[0].candidates[3].sampling is None


def test_reading_it_again_gives_the_same_and_newer_fields_are_tolerated() -> None:
    report = build_report(job_facts())
    text = report.model_dump_json(by_alias=True)
    assert Report.model_validate_json(text) == report
    newer = json.loads(text) | {"of_the_future": 1}
    assert Report.model_validate(newer) == report


def test_a_job_that_was_cancelled_early() -> None:
    facts = job_facts()
    skipped = tuple(
        dataclasses.replace(
            c, state="skipped", reason="the job was cancelled", validation=None, test=None, size_bytes=None
        )
        for c in facts.devices[0].candidates
    )
    device = dataclasses.replace(facts.devices[0], candidates=skipped, validation_drops=None, test_drops=None)
    report = build_report(dataclasses.replace(facts, devices=(device,)))
    assert report.devices[0].selected is None
    assert all(c.rejected_because == ["the job was cancelled"] for c in report.devices[0].candidates)


def test_without_devices_and_without_a_metric() -> None:
    report = build_report(dataclasses.replace(job_facts(), metric="", devices=()))
    assert (report.devices, report.metric.name) == ([], "")


def test_the_servers_process_stays_light() -> None:
    code = (
        "import sys, fleetfit.server.report.build, fleetfit.server.selection.choose;"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "scipy", "torch", "onnx", "bokeh", "jinja2"} & set(done.stdout.split())


def test_what_a_warm_device_does_stands_in_the_report() -> None:
    facts = job_facts()
    device = facts.devices[0]

    def warm(c: CandidateFacts) -> CandidateFacts:
        figures = [Figure(value=v, low=v * 0.9, high=v * 1.1) for v in (1.0, 1.3, 1.3)]
        found = Sustained(burst_ms=figures[0], p50_ms=figures[1], p95_ms=1.6, slowdown=figures[2], seconds=120.0)
        return dataclasses.replace(
            c, warm_counts=True, validation=c.validation and c.validation.model_copy(update={"sustained": found})
        )

    warmed = dataclasses.replace(device, candidates=(warm(device.candidates[0]), *device.candidates[1:]))
    report = build_report(dataclasses.replace(facts, devices=(warmed,), sustained_ms=120_000))
    figure = report.devices[0].candidates[0].sustained_ms
    assert figure is not None
    assert (figure.burst, figure.p50, figure.p95, figure.slowdown, figure.seconds) == (1.0, 1.3, 1.6, 1.3, 120.0)
    assert figure.ci95 == pytest.approx((1.17, 1.43)) and figure.counts
    assert "warm 1.30 ms" in render(report)
    # Asked for, and not there: an agent that does not know it.
    assert any("on a warm device was not measured" in note for note in report.devices[0].candidates[1].notes)
    assert report.devices[0].candidates[1].sustained_ms is None
