from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fleetfit.client.tables import lists
from fleetfit.client.tables.profiles import profile_facts, profile_rows, profiles_table
from fleetfit.client.tables.report import interval, report_parts
from fleetfit.client.tables.report_rows import Span, rows_of
from fleetfit.client.tables.report_text import report_csv, report_markdown
from fleetfit.device_profiles.loader import load_profiles
from fleetfit.proto.v1 import common_pb2, devices_pb2, jobs_pb2, models_pb2, snapshot_pb2

LONG = "a-very-long-name-that-somebody-gave-to-a-thing-of-theirs-1234567"


def candidate(recipe: str, variant: str, **other: Any) -> dict[str, Any]:
    found = {
        "variant": variant,
        "recipe": recipe,
        "runtime": "onnxruntime",
        "baseline": False,
        "status": "measured",
        "condition": {"threads": 1, "batch": 1, "power_mode": "performance"},
        "metric": {"value": 90.5, "ci95": [89.0, 92.0], "n": 900, "split": "validation", "where": "device"},
        "test_metric": None,
        "size_bytes": 123_456,
        "parameters": 30_000,
        "latency_ms": {"p50": 0.4123, "p95": 0.51, "p99": None, "ci95": [0.409, 0.415], "samples": 700, "processes": 5},
        "speedup": {
            "original": {"ratio": 2.31, "ci95": [2.25, 2.38]},
            "best_uncompressed": {"ratio": 2.31, "ci95": [2.25, 2.38]},
            "incumbent": None,
        },
        "peak_memory_bytes": 3_200_000,
        "trust": "clean",
        "tie_with": [],
        "meets_limits": True,
        "rejected_because": [],
        "notes": [],
    }
    return found | other


@pytest.fixture
def report() -> dict[str, Any]:
    ratio_one = {"original": {"ratio": 1.0, "ci95": [0.99, 1.01]}, "best_uncompressed": None, "incumbent": None}
    return {
        "schema": 1,
        "job": "01m874te31q3hktkhhnmtet2ra",
        "model": "signals:1",
        "metric": {"name": "accuracy", "unit": "points", "higher_is_better": True},
        "limits": {"max_drop_points": 1.0, "p95_ms": None},
        "devices": [
            {
                "device": LONG,
                "profile": "x86-server-avx512-vnni",
                "snapshot": "s",
                "emulated": True,
                "selected": "aaaaaaaaaa",
                "why": "pruned-int8 is 2.3 times as fast as the original [with all of its interval above 1].",
                "candidates": [
                    candidate("original", "0000000000", baseline=True, speedup=ratio_one, parameters=286_533,
                              metric={"value": 91.0, "ci95": [89.5, 92.5], "n": 900, "split": "validation", "where": "device"}),
                    candidate("pruned-int8", "aaaaaaaaaa", drop={"value": 0.5, "ci95": [-0.2, 1.2]}),
                    candidate(LONG, "bbbbbbbbbb", meets_limits=False, trust="noisy", tie_with=["aaaaaaaaaa"],
                              rejected_because=["loses 2.10 points where 1 is allowed", "is no faster than the original"]),
                    candidate("low-rank", "cccccccccc", status="failed", metric=None, latency_ms=None, speedup=None,
                              size_bytes=None, peak_memory_bytes=None, meets_limits=False,
                              notes=["the device ran out of memory [exit 86]"]),
                ],
            }
        ],
    }  # fmt: skip


def printed(parts: Iterable[RenderableType], *, width: int = 80, terminal: bool = False) -> str:
    screen = Console(
        file=io.StringIO(),
        width=width,
        markup=False,
        highlight=False,
        force_terminal=terminal,
        color_system="truecolor" if terminal else None,
    )
    with screen.capture() as captured:
        for part in parts:
            screen.print(part)
    return captured.get()


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_report_fits_80_columns_and_says_everything(report: dict[str, Any]) -> None:
    text = printed(report_parts(report))
    assert max(map(len, text.splitlines())) <= 80
    flat = one_line(text)
    for words in (
        "emulated: its timings mean nothing",
        "Chosen: pruned-int8. pruned-int8 is 2.3 times as fast as the original [with all of its interval above 1].",
        "wanted: a drop of at most 1",
        "0.412", "0.409-0.415", "2.31", "2.25-2.38", "0.50", "123 kB", "3.20 MB", "aaaaaaaaaa",
        "loses 2.10 points where 1 is allowed; is no faster than the original",
        "low-rank: the device ran out of memory [exit 86]",
        "measured on a noisy device: ",
        "ties in speed with ",
    ):  # fmt: skip
        assert words in flat, words
    assert "-0.20 to" in flat, "an interval with a negative bound does not read like a range of two minus signs"


def test_ties_controls_and_doubts_are_told(report: dict[str, Any]) -> None:
    device = report["devices"][0]
    device["candidates"][1]["speedup"]["original"] = {"ratio": 1.01, "ci95": [0.98, 1.04], "tie": True}
    control = {"runtime": "onnxruntime", "threads": 1, "batch": 1, "words": "timed beside itself it came out even"}
    device |= {"controls": [control], "doubt": "Doubtful: something is wrong."}
    report["tie_margin"] = 0.01
    text = printed(report_parts(report))
    assert max(map(len, text.splitlines())) <= 80
    flat = one_line(text)
    assert re.search(r"^.*\btie\b", text, re.MULTILINE) and "0.980-1.04" in flat
    assert "A/A control: timed beside itself it came out even." in flat and "Doubtful: something is wrong." in flat
    assert "a tie is what has 1 in it, or all of it within 1 % of 1." in flat
    page = report_markdown(report)
    assert "1.01 (0.980-1.04, a tie)" in page and "A/A control: timed beside" in page and "**Doubtful:" in page


def test_no_colour_codes_where_there_is_no_terminal(report: dict[str, Any]) -> None:
    assert "\x1b" not in printed(report_parts(report))
    assert "\x1b" in printed(report_parts(report), terminal=True), "the test would not see colours at all"


def test_a_drop_is_taken_from_the_metric_where_the_report_has_none(report: dict[str, Any]) -> None:
    rows = rows_of(report, report["devices"][0])
    assert rows[1].drop == Span(0.5, -0.2, 1.2)
    assert rows[2].drop == Span(0.5, None, None)
    assert rows[3].drop is None
    report["metric"]["higher_is_better"] = False
    assert rows_of(report, report["devices"][0])[2].drop == Span(-0.5, None, None)


def test_one_row_is_chosen_even_where_its_variant_ran_under_several_conditions(report: dict[str, Any]) -> None:
    device = report["devices"][0]
    twice = candidate("pruned-int8", "aaaaaaaaaa", condition={"threads": 2, "batch": 1}, rejected_because=["slower"])
    device["candidates"].insert(0, twice)
    rows = rows_of(report, device)
    assert [row.selected for row in rows] == [False, False, True, False, False]
    assert "pruned-int8 2 thr: slower" in one_line(printed(report_parts(report)))


def test_a_report_with_nothing_chosen_and_nothing_measured(report: dict[str, Any]) -> None:
    device = report["devices"][0]
    device |= {
        "selected": None,
        "why": "Nothing meets the limits; the closest is low-rank.",
        "candidates": device["candidates"][3:],
    }
    text = one_line(printed(report_parts(report)))
    assert "Nothing was chosen. Nothing meets the limits" in text
    assert "Chosen:" not in text


def test_intervals_read_well() -> None:
    assert interval(Span(1.0, 0.9, 1.1)) == "0.900-1.10"
    assert interval(Span(1.0, None, None)) == ""
    assert interval(Span(0.0, -0.5, 0.5), 2) == "-0.50 to 0.50"
    assert interval(Span(1.0, 0.5, None)) == "0.500-?"


def test_csv_has_one_line_for_each_candidate_and_no_formulas(report: dict[str, Any]) -> None:
    report["devices"][0]["candidates"][2]["recipe"] = "=cmd()"
    rows = list(csv.DictReader(io.StringIO(report_csv(report))))
    assert len(rows) == 4
    assert rows[1]["recipe"] == "pruned-int8" and rows[1]["selected"] == "true"
    assert (rows[1]["p50_ms"], rows[1]["p50_ms_low"], rows[1]["drop_high"]) == ("0.4123", "0.409", "1.2")
    assert rows[2]["recipe"] == "'=cmd()"
    assert rows[3]["p50_ms"] == "" and rows[3]["status"] == "failed"
    assert rows[2]["rejected_because"].count(";") == 1


def test_markdown_rows_have_as_many_cells_as_their_heading(report: dict[str, Any]) -> None:
    report["devices"][0]["candidates"][2]["rejected_because"] = ["a | b\nand <b>more</b>"]
    text = report_markdown(report)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 6
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {13}
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_a_device_s_health_is_told_in_words() -> None:
    check = devices_pb2.HealthCheck(
        check_id="c", at_unix_ms=1, verdict="failed", why="it is 50 % slower than before", p50_ms=1.5, low_ms=1.49,
        high_ms=1.51, outputs_right=True, expected_low_ms=0.9, expected_high_ms=1.1, history=7,
    )  # fmt: skip
    device = devices_pb2.Device(
        name="pi", state=devices_pb2.DEVICE_STATE_ONLINE, set_aside="it is 50 % slower than before", last_check=check
    )
    device.events.add(at_unix_ms=1, text="15W -> MAXN")
    assert lists.device_state(device) == "online, set aside"
    said = lists.health_words(device)
    assert re.fullmatch(
        r"failed \d+ d ago: it is 50 % slower than before; the golden model took 1.50 ms \(1.49 to 1.51\); 0.900 to 1.10 were "
        r"expected after 7 checks under this condition",
        said,
    )
    shown = printed([lists.device_facts(device)])
    assert "15W -> MAXN" in shown and max(map(len, shown.splitlines())) <= 80
    old = devices_pb2.Device(no_check_because="its agent (0.0.9) knows no health checks; update it")
    assert lists.health_words(old) == "not checked: its agent (0.0.9) knows no health checks; update it"
    assert lists.health_words(devices_pb2.Device()) == "not checked yet"


def test_every_list_fits_80_columns_with_long_names() -> None:
    device = devices_pb2.Device(
        name=LONG, device_id="d" * 26, labels=[LONG, LONG], state=devices_pb2.DEVICE_STATE_ONLINE, paused=True, emulated=True,
        profile="x86-server-avx512-vnni", profile_reason="its flags have avx512_vnni " * 4, snapshot_id="s",
        profile_json=load_profiles()["jetson-agx-xavier"].model_dump_json(),
        snapshot=snapshot_pb2.DeviceSnapshot(
            memory_bytes=8 << 30, runtimes=[snapshot_pb2.Runtime(name="openvino", reason='pip install "x[openvino]"')]
        ),
    )  # fmt: skip
    tensor = common_pb2.TensorSpec(name="x", dtype="float32", shape=[-1, 3])
    model = models_pb2.Model(
        name=LONG,
        version=12,
        format="pt2",
        state=models_pb2.INTAKE_STATE_REFUSED,
        refusal="no [good] " * 20,
        inputs=[tensor],
    )
    data = models_pb2.Dataset(
        name=LONG, version=3, task="classification", metric="mean_absolute_error", inputs=[tensor]
    )
    state = jobs_pb2.CandidateStatus(
        device=LONG, recipe=LONG, runtime="onnxruntime", state="failed", detail="because " * 20
    )
    job = jobs_pb2.Job(
        job_id="j" * 26, spec=jobs_pb2.JobSpec(model=LONG, devices=[LONG, LONG]), candidates=[state],
        progress=common_pb2.Progress(fraction=0.5),
    )  # fmt: skip
    plan = jobs_pb2.Plan(
        candidates=[
            jobs_pb2.PlannedCandidate(
                device=LONG, recipe=LONG, runtime="onnxruntime", threads=1, batch=1, skip_reason="no " * 30
            ),
            jobs_pb2.PlannedCandidate(device="pi", recipe="original", runtime="onnxruntime", threads=2, batch=8),
        ]
    )
    for part in (
        lists.devices_table([device]), lists.device_facts(device), lists.models_table([model]), lists.model_facts(model),
        lists.datasets_table([data]), lists.dataset_facts(data), lists.jobs_table([job]), lists.job_candidates(job),
        lists.plan_table(plan),
    ):  # fmt: skip
        text = printed([part])
        assert max(map(len, text.splitlines())) <= 80
        assert "\x1b" not in text
    shown = printed([lists.device_facts(device)])
    assert '[openvino]"' in shown, "text in brackets is not markup"
    assert "container: JetPack 5" in shown and "EDP, 10W (10 W), 15W (15 W), 30W (30 W)" in shown
    assert "the warm figure counts" in shown and "never run" in shown
    assert "[good]" in printed([lists.model_facts(model)])


def test_profiles_fit_80_columns() -> None:
    profiles = [profile.model_dump(mode="json") for profile in load_profiles().values()]
    for part in (profiles_table(profiles), *map(profile_facts, profiles)):
        assert max(map(len, printed([part]).splitlines())) <= 80
    shown = printed([profile_facts(load_profiles()["jetson-thor"].model_dump(mode="json"))])
    assert "130 W: " in shown and "2.6 GHz at most" in shown and "ridgerun" in shown


def test_a_profile_of_an_older_or_newer_server_is_shown_as_far_as_it_is_known() -> None:
    assert profile_rows({}) == []
    assert profile_rows({"notes": ["as it was"], "round_to": 8}) == [
        ("seen running", "never run"),
        ("note", "as it was"),
    ]
    newer = {"agent": {"status": "dreamt of", "reason": "it may be", "mood": 3}, "runs": {"x": {"kind": "guessed"}}}
    assert profile_rows(newer) == [("runs the agent", "dreamt of: it may be"), ("seen running", "x guessed")]


def test_a_long_name_is_parted_behind_hyphens() -> None:
    from fleetfit.client.tables.report import _broken

    assert _broken("original-retrained") == "original-\nretrained"
    assert _broken("* pruned-low-rank") == "* pruned-low-\nrank"
    assert _broken("short") == "short"
    assert _broken("a--b").replace("\n", "") == "a--b"


def test_energy_is_listed_where_it_was_measured(report: dict[str, Any]) -> None:
    assert "Energy" not in printed(report_parts(report))
    energy = {"joules": 0.0124, "ci95": [0.0121, 0.0127], "idle_watts": 2.0, "busy_watts": 6.0, "meter": "rails"}
    report["devices"][0]["candidates"][0]["energy"] = energy
    text = printed(report_parts(report))
    assert "Energy of a call above rest, by rails:" in text and ": 12.4 mJ (12.1 mJ to 12.7 mJ)" in one_line(text)
    assert max(map(len, text.splitlines())) <= 80
    header, first = list(csv.reader(io.StringIO(report_csv(report))))[:2]
    at = header.index("energy_joules")
    assert first[at : at + 3] == ["0.0124", "0.0121", "0.0127"]


def test_a_model_with_parts_shows_both_latencies(report: dict[str, Any]) -> None:
    plain = printed(report_parts(report))
    assert "End to end" not in plain and "end to end" not in report_markdown(report)
    whole: dict[str, Any] = {"p50": 8.13, "p95": 9.5, "p99": None, "ci95": [8.0, 8.25], "samples": 700, "processes": 6}
    whole["speedup"] = {"ratio": 1.31, "ci95": [1.29, 1.33], "tie": False}
    parts = {name: {"p50": ms, "ci95": [ms, ms], "samples": 700} for name, ms in (("pre", 2.0), ("core", 0.41))}
    for at in (0, 1):
        report["devices"][0]["candidates"][at] |= {"end_to_end_ms": whole, "parts_ms": parts | {"post": None}}
    report |= {"parts": {"pre": {"sha256": "a" * 64, "size_bytes": 10}}}
    report["limits"] |= {"p95_ms": 1.0, "p95_end_to_end_ms": 10.0}
    text = printed(report_parts(report))
    assert max(map(len, text.splitlines())) <= 80
    flat = one_line(text)
    assert "p95 of the model alone at most 1 ms, p95 end to end at most 10 ms" in flat
    chosen = "pruned-int8: 8.13 (8.00-8.25) ms, p95 9.50 ms, 1.31 (1.29-1.33) times as fast as the original's; alone pre 2.00"
    assert chosen in flat and "core 0.410 ms" in flat
    assert "original: 8.13 (8.00-8.25) ms, p95 9.50 ms; alone" in flat
    header, first = list(csv.reader(io.StringIO(report_csv(report))))[:2]
    at = header.index("end_to_end_ms")
    assert first[at : at + 4] == ["8.13", "8.0", "8.25", "9.5"] and first[header.index("post_ms")] == ""
    lines = [line for line in report_markdown(report).splitlines() if line.startswith("|")]
    assert "end to end ms" in lines[0] and len({line.count(" | ") for line in lines}) == 1


def test_a_model_lists_its_parts() -> None:
    part = models_pb2.ModelPart(artifact=common_pb2.ArtifactRef(sha256="a" * 64, size_bytes=1234))
    part.inputs.add(name="pixels", dtype="uint8", shape=[-1, 224, 224, 3])
    part.outputs.add(name="x", dtype="float32", shape=[-1, 3, 224, 224])
    model = models_pb2.Model(name="net", version=1, format="onnx", pre=part)
    text = printed([lists.model_facts(model)])
    assert "pre part" in text and "pixels" in text and "post part" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_recovered_network_says_whose_it_is_and_what_changed() -> None:
    found = models_pb2.Recovered(
        recovered="ab" * 32, variant="cd" * 32, model="net:3", recipe=LONG, parameters=30_000, changed=3, tensors=8,
        artifact=common_pb2.ArtifactRef(sha256="ef" * 32, size_bytes=2_000_000), notes=["It was not trained."],
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(lists.recovered_facts(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    for said in ("ababababab", "cdcdcdcdcd", "net:3", "3 of its 8 weights and buffers", "It was not trained."):
        assert said in text
