from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Any

import pytest
from rich.console import Console

from fleetfit.client.tables.report_text import report_csv, report_markdown
from fleetfit.client.tables.scaling import scaling_parts
from fleetfit.server.report.analyse import summarize
from fleetfit.server.report.build import build_report

from ..server.report.invented import job_facts
from ..server.report.scaled import scaling_result


def shown(device: dict[str, Any]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80, no_color=True)
    for part in scaling_parts(device):
        console.print(part)
    return out.getvalue()


@pytest.fixture(scope="module")
def device() -> dict[str, Any]:
    facts = job_facts()
    first = facts.devices[0]
    candidates = tuple(dataclasses.replace(c, scaling=summarize(scaling_result(123.456))) for c in first.candidates[:2])
    first = dataclasses.replace(first, candidates=candidates)
    report = build_report(dataclasses.replace(facts, devices=(first,), scaling=True))
    written: dict[str, Any] = json.loads(report.devices[0].model_dump_json())
    return written


def test_every_point_has_a_line_and_fits_80_columns(device: dict[str, Any]) -> None:
    text = shown(device)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "How original scales:" in text and "How original-retrained scales:" in text
    rows = [line.split() for line in lines if "MB" in line]
    # Of either, three by threads, two by batch and three by processes were measured.
    assert len(rows) == 2 * 8
    assert rows[0][:4] == ["threads", "1", "1", "1"]
    assert rows[7][:3] == ["4", "1", "1"] and rows[7][-2:] == ["36.0", "MB"]
    assert "- threads: that is all 4 usable cores" in text
    assert "- 1 x 1 thr batch 4: the build needs more memory" in text
    assert any(line.strip().startswith("-") and "…" in line for line in lines) is False


def test_an_interval_over_decades_is_parted_between_its_ends() -> None:
    point = {
        "instances": 16, "threads": 16, "batch": 256, "status": "measured", "message": "",
        "throughput": {"value": 1822.0, "ci95": [0.000744, 204220.0]}, "gain": {"value": 0.509, "ci95": [0.00546, 47.4]},
        "p50_ms": {"value": 0.0758, "ci95": [0.00326, 1.76]}, "p95_ms": {"value": 0.204, "ci95": [0.0546, 0.765]},
        "memory_bytes": {"value": 158e6, "ci95": [150e6, 160e6]},
    }  # fmt: skip
    candidate = {"recipe": "a", "scaling": {"batch": {"points": [point], "ended": ""}, "trust": "clean"}}
    text = shown({"candidates": [candidate]})
    assert {"0.000744-", "204220", "0.00546-", "47.4", "0.00326-", "1.76", "0.0546-", "0.765"} <= set(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_nothing_is_said_where_nothing_was_measured(device: dict[str, Any]) -> None:
    assert shown({"candidates": [{"recipe": "original"}]}) == ""
    assert shown({}) == ""


def test_one_round_is_shown_without_an_interval() -> None:
    point = {
        "instances": 1, "threads": 1, "batch": 1, "status": "measured", "message": "",
        "throughput": {"value": 812.0, "ci95": [None, None]}, "gain": {"value": 1.0, "ci95": [1.0, 1.0]},
        "p50_ms": {"value": 1.23, "ci95": [None, None]}, "p95_ms": None, "memory_bytes": None,
    }  # fmt: skip
    candidate = {"recipe": "a", "scaling": {"threads": {"points": [point], "ended": ""}, "trust": "noisy"}}
    text = shown({"candidates": [candidate]})
    assert "812" in text and "None" not in text and "measured on a noisy device" in text


def test_csv_has_a_line_for_each_point(device: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(report_csv({"job": "j1", "devices": [device]}, "scaling"))))
    assert len(rows) == 2 * 9, "a point that could not be measured has a line, too"
    assert {row["job"] for row in rows} == {"j1"} and {row["recipe"] for row in rows} == {
        "original",
        "original-retrained",
    }
    assert [row["more"] for row in rows[:9]] == ["threads"] * 3 + ["batch"] * 3 + ["processes"] * 3
    point = device["candidates"][0]["scaling"]["threads"]["points"][1]
    assert float(rows[1]["samples_per_second"]) == point["throughput"]["value"]
    assert float(rows[1]["samples_per_second_low"]) == point["throughput"]["ci95"][0]
    assert (rows[1]["processes"], rows[1]["threads"], rows[1]["batch"]) == ("1", "2", "1")
    failed = next(row for row in rows if row["status"] != "measured")
    assert failed["samples_per_second"] == "" and "needs more memory" in failed["message"]


def test_csv_and_markdown_of_what_was_not_measured() -> None:
    report = {"job": "j1", "devices": [{"device": "pi", "candidates": [{"recipe": "original"}]}]}
    assert len(report_csv(report, "scaling").splitlines()) == 1
    assert "scales" not in report_markdown(report) and "operators" not in report_markdown(report)


def test_markdown_shows_the_same_points(device: dict[str, Any]) -> None:
    text = report_markdown({"job": "j1", "devices": [device]})
    lines = text[text.index("### How original scales in") :].splitlines()
    table = [line for line in lines[: lines.index("", 2)] if line.startswith("|")]
    assert len(table) == 2 + 9
    assert {line.count("|") for line in table} == {10}
    assert any("needs more memory" in line for line in table)
    assert "### How original-retrained scales in" in text
