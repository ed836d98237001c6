"""The metric on a device beside the server's: analysed as the server does it, printed, and computed again by a reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetfit.client.tables.report_text import report_markdown
from fleetfit.client.verifying import verify_report
from fleetfit.core.digests import sha256_file
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.report import analyse
from fleetfit.server.report.build import build_report
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts, LimitFacts
from fleetfit.server.report.gaps import Against
from fleetfit.server.report.render import render
from fleetfit.server.report.summary import MeasurementSummary, StoredFile

from .raw import raw_result, write_raw

RIGHT = np.ones(300, np.float32)
OUTPUTS = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)


class Site:
    """A folder of stored content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw = measurement_pb2.MeasurementResult()

    def keep(self, name: str, save: Callable[[Path], Any]) -> tuple[Path, StoredFile]:
        path = self.folder / name
        save(path)
        return path, StoredFile(sha256=sha256_file(path), size_bytes=path.stat().st_size)

    def against(self, scores: Any, rows: Any = None, outputs: Any = OUTPUTS) -> Against:
        arrays = {"scores": scores, "outputs": outputs, "rounding": np.float64(0)}
        path, stored = self.keep("evidence.npz", lambda one: np.savez(one, **arrays))
        found = Against(evidence=stored, evidence_path=str(path), runtime_version="1.23.2")
        if rows is None:
            return found
        path, stored = self.keep("rows.npy", lambda one: np.save(one, rows))
        return found.model_copy(update={"rows": stored, "rows_path": str(path)})

    def analysed(self, scores: Any, outputs: Any, against: Against) -> MeasurementSummary:
        self.raw = raw_result(scores=scores.tolist())
        self.raw.metric.judged.extend(outputs.reshape(-1).tolist())
        self.raw.metric.judged_width = outputs.shape[1]
        out = self.folder / "out.json"
        source = write_raw(self.folder / "raw.pb.gz", self.raw)
        assert analyse.main([str(source), str(out), against.model_dump_json()]) == 0
        return MeasurementSummary.model_validate_json(out.read_text())

    def report(self, summary: MeasurementSummary) -> dict[str, Any]:
        candidate = CandidateFacts(
            id="c", variant="abc", recipe="small", role="recipe", runtime="onnxruntime", threads=1, batch=1,
            state="measured", validation=summary, raw={"measured": ("0" * 64, 1)},
        )  # fmt: skip
        device = DeviceFacts("1", "pi", "", "s", False, (candidate,))
        facts = JobFacts("j", "bench", "net:1", "accuracy", "latency", LimitFacts(), True, 0, (device,))
        made = build_report(facts)
        self.page = render(made)
        dumped: dict[str, Any] = made.model_dump(mode="json", by_alias=True)
        return dumped

    def read(self, sha256: str, size_bytes: int, read: Callable[[Path], Any]) -> Any:
        for path in self.folder.iterdir():
            if sha256_file(path) == sha256:
                assert path.stat().st_size == size_bytes
                return read(path)
        raise AssertionError(sha256)

    def differences(self, report: dict[str, Any]) -> list[str]:
        found = verify_report(report, lambda sha256, size: self.raw, self.read)
        assert not [one for one in found.skipped if "gap" in one]
        return [one.figure for one in found.differences if one.figure.startswith("metric")]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_build_that_does_the_same_has_a_gap_of_nothing_and_no_warning(site: Site) -> None:
    report = site.report(site.analysed(RIGHT, OUTPUTS, site.against(RIGHT)))
    metric = report["devices"][0]["candidates"][0]["metric"]
    assert metric["server"]["value"] == metric["value"] == 100.0
    assert (metric["gap"]["value"], metric["gap"]["p"], metric["gap"]["flagged"]) == (0.0, 1.0, False)
    assert (metric["gap"]["compared"], metric["gap"]["distance"], metric["gap"]["words"]) == (300, 0.0, "")
    assert report["devices"][0]["warnings"] == []
    assert "not as on the server" not in site.page and "on the server" in site.page
    assert site.differences(report) == []


def test_a_build_that_does_something_else_is_named_with_its_worst_sample_wherever_people_look(site: Site) -> None:
    here, outputs = RIGHT.copy(), OUTPUTS.copy()
    here[[5, 50, 90, 100, 200, 201, 222, 250, 299]] = 0
    outputs[222] += 40
    report = site.report(site.analysed(here, outputs, site.against(RIGHT)))
    gap = report["devices"][0]["candidates"][0]["metric"]["gap"]
    assert gap["flagged"] and gap["p"] == pytest.approx(2 / 2**9) and gap["value"] == pytest.approx(3.0)
    assert (gap["worst_sample"]["index"], gap["worst_sample"]["here"], gap["worst_sample"]["there"]) == (222, 0.0, 1.0)
    (warning,) = report["devices"][0]["warnings"]
    assert warning.startswith(
        "small does not do on this device what it did on the server: accuracy is 97.00 on the device"
    )
    assert "the worst sample is 222 (scored 0 here, 1 there" in warning
    assert "McNemar" in warning and "not as on the server" in site.page
    assert "**Warning: small does not do" in report_markdown(report)
    assert site.differences(report) == []
    gap["p"], gap["flagged"] = 0.5, False
    assert site.differences(report) == ["metric.gap.p", "metric.gap.flagged"]


def test_of_a_part_of_the_split_the_same_samples_are_compared(site: Site) -> None:
    there = RIGHT.copy()
    there[::2] = 0
    rows = np.sort(np.random.default_rng(0).permutation(300)[:120]).astype(np.int64)
    outputs = OUTPUTS.copy()
    # The server kept the outputs of the first 200 only.
    report = site.report(site.analysed(there[rows], outputs[rows], site.against(there, rows, OUTPUTS[:200])))
    metric = report["devices"][0]["candidates"][0]["metric"]
    assert metric["gap"]["value"] == 0 and not metric["gap"]["flagged"]
    assert metric["gap"]["compared"] == int((rows < 200).sum())
    assert metric["server"]["value"] == metric["value"]
    assert site.differences(report) == []
    wrong = outputs[rows]
    wrong[3, 1] += 9
    report = site.report(site.analysed(there[rows], wrong, site.against(there, rows, OUTPUTS[:200])))
    gap = report["devices"][0]["candidates"][0]["metric"]["gap"]
    assert gap["flagged"] and gap["worst_sample"]["index"] == rows[3]
    assert "outputs of 1 of" in report["devices"][0]["warnings"][0]
    assert site.differences(report) == []


def test_what_cannot_be_compared_says_so(site: Site) -> None:
    summary = site.analysed(RIGHT, OUTPUTS, site.against(RIGHT[:200]))
    assert summary.metric is not None and summary.metric.gap is None
    assert any("no scores of the same samples" in note for note in summary.notes)
    against = site.against(RIGHT)
    Path(against.evidence_path).write_bytes(b"no archive")
    summary = site.analysed(RIGHT, OUTPUTS, against)
    assert any("cannot be read" in note for note in summary.notes)


def test_an_agent_that_returns_no_outputs_is_compared_by_its_scores(site: Site) -> None:
    summary = site.analysed(RIGHT, np.zeros((0, 1), np.float32), site.against(RIGHT))
    assert summary.metric is not None and summary.metric.gap is not None
    assert (summary.metric.gap.compared, summary.metric.gap.distance) == (0, None)


def test_a_metric_that_went_on_says_so(site: Site) -> None:
    site.raw = raw_result(scores=RIGHT.tolist())
    site.raw.metric.resumed = 128
    notes = analyse.summarize(site.raw).notes
    assert "accuracy was interrupted on the device, and went on after 128 samples" in notes
