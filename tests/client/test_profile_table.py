from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from fleetfit.client.tables.profile import profile_parts
from fleetfit.client.tables.report_text import report_csv, report_markdown
from fleetfit.server.report.build import build_report

from ..server.report.profiled import none_result
from ..server.report.test_profiles import profiled_facts


def shown(device: dict[str, Any]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80, no_color=True)
    for part in profile_parts(device):
        console.print(part)
    return out.getvalue()


@pytest.fixture
def device() -> dict[str, Any]:
    written: dict[str, Any] = json.loads(build_report(profiled_facts()).devices[0].model_dump_json())
    return written


def test_two_builds_stand_side_by_side_in_80_columns(device: dict[str, Any]) -> None:
    text = shown(device)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    heading = next(line for line in lines if "SHARE" in line)
    assert heading.split() == ["*", "pruned-int8", "MS", "SHARE", "original", "MS", "SHARE"]
    (largest,) = (line for line in lines if "0.800" in line)
    assert largest.split() == ["Conv", "float32", "0.200", "40.0%", "Conv", "float32", "0.800", "40.0%"]
    (rest,) = (line for line in lines if "others" in line)
    assert rest.split() == ["5", "others", "0.0450", "9.0%", "5", "others", "0.180", "9.0%"]
    # The end of a name tells it from others.
    assert "…v_with_a_long_name/Conv" in text
    joined = " ".join(text.split())
    assert "original: 15 operators in 2.00 ms of 2.40 ms a call with the profiler on (p50 without it" in joined
    assert "do not add up to the latency" in joined and "whole microseconds" in joined


def test_a_build_without_a_profile_says_why_and_the_other_has_a_line_for_each_operator() -> None:
    device = json.loads(build_report(profiled_facts(none_result())).devices[0].model_dump_json())
    text = shown(device)
    assert max(map(len, text.splitlines())) <= 80
    joined = " ".join(text.split())
    assert "pruned-int8: not timed: ncnn's package times no layers" in joined
    assert "OPERATOR NAME MS SHARE" in joined and "Gemm float32 /classifier/Gemm 0.240 12.0%" in joined


def test_builds_of_several_runtimes_are_named_by_them(device: dict[str, Any]) -> None:
    profiled = [c for c in device["candidates"] if c["profile"]]
    profiled[1]["runtime"] = "openvino"
    profiled[1]["profile"]["operators"][0]["placed"] = "GPU"
    text = shown(device)
    assert "original in onnxruntime" in text and "pruned-int8 in openvino" in text
    assert "Conv float32 GPU" in text and "Conv float32 CPU" in text, "places are told where they differ"
    assert max(map(len, text.splitlines())) <= 80


def test_an_operator_without_a_type_goes_by_its_name(device: dict[str, Any]) -> None:
    for candidate in device["candidates"]:
        for one in (candidate["profile"] or {}).get("operators", []):
            one["operator"] = one["number_format"] = ""
            one["name"] += " + /classifier/Relu" * (one["name"] == "/classifier/Gemm")
    text = shown(device)
    assert "/classifier/Gemm" in text and max(map(len, text.splitlines())) <= 80


def test_nothing_is_said_where_nobody_asked(device: dict[str, Any]) -> None:
    assert shown({"candidates": [{"recipe": "original"}]}) == ""
    assert shown({}) == ""


def test_csv_has_a_line_for_each_operator(device: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(report_csv({"job": "j1", "devices": [device]}, "operators"))))
    wanted = [
        (c["recipe"], one["name"], one["ms"], one["share"])
        for c in device["candidates"]
        for one in (c["profile"] or {"operators": []})["operators"]
    ]
    assert [(row["recipe"], row["name"], float(row["ms"]), float(row["share"])) for row in rows] == wanted
    assert len(wanted) > 20 and {row["number_format"] for row in rows} == {"float32"}


def test_markdown_shows_the_ten_largest_of_each_build(device: dict[str, Any]) -> None:
    text = report_markdown({"job": "j1", "devices": [device]})
    for recipe in ("original", "pruned-int8"):
        lines = text[text.index(f"### The largest operators of {recipe} in") :].splitlines()
        table = [line for line in lines[: lines.index("", 2)] if line.startswith("|")]
        assert len(table) == 2 + 10
        assert table[2].startswith("| Conv |") and table[2].endswith("| 40.0 % |")
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}
    assert text.count("do not add up to the latency") == 2
