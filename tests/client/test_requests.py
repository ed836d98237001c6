from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.client.requests import (
    Wanted,
    drop,
    duration_ms,
    job_spec,
    name_for,
    objective,
    recipe_source,
    split_names,
)
from fleetfit.core.errors import InvalidInput, UsageError
from fleetfit.proto.v1 import jobs_pb2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", (1.0, False)), ("0", (0.0, False)), ("0.62", (0.62, False)), ("2%", (2.0, True)), (" 2.5 % ", (2.5, True))],
)
def test_drop(text: str, expected: tuple[float, bool]) -> None:
    assert drop(text) == expected


@pytest.mark.parametrize("text", ["", "%", "-1", "1e3", "nan", "inf", "1,5", "2%%", "one", "1 point"])
def test_a_drop_that_cannot_be_meant_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="not a loss of the metric"):
        drop(text)


@given(st.text(max_size=20))
def test_drop_gives_a_finite_number_or_a_sentence(text: str) -> None:
    try:
        value, _ = drop(text)
    except UsageError as error:
        assert error.message
    else:
        assert math.isfinite(value) and value >= 0


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90_000), ("30m", 1_800_000), ("1.5h", 5_400_000), ("1d", 86_400_000), ("10", 10_000)]
)
def test_duration(text: str, expected: int) -> None:
    assert duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0m", "-5m", "5x", "m", "1h30m", "9" * 40])
def test_a_duration_that_cannot_be_meant_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="not a length of time"):
        duration_ms(text)


def test_limits_reach_the_request_in_the_units_of_the_protocol() -> None:
    spec = job_spec(
        Wanted(
            "m",
            data="d",
            on=["pi,edge", "pi"],
            max_drop="2%",
            p95_ms=1.5,
            max_memory_mb=3,
            max_size_mb=0.5,
            threads=[2],
            scaling=True,
            profile=True,
            sustained="2m",
            device_samples=500,
            if_not_quiet="refuse",
            power_mode="MAXN",
        )
    )
    assert list(spec.devices) == ["pi", "edge"]
    assert spec.limits.max_drop_percent == 2 and not spec.limits.HasField("max_drop_points")
    assert (spec.limits.p95_ms, spec.limits.max_peak_memory_bytes, spec.limits.max_size_bytes) == (
        1.5,
        3_000_000,
        500_000,
    )
    assert (spec.sustained_ms, spec.device_samples) == (120_000, 500)
    assert spec.sustained_ms == 120_000
    assert (spec.refuse_unfit, spec.power_mode) == (True, "MAXN")
    assert spec.scaling and spec.profile
    assert spec.kind == jobs_pb2.JOB_KIND_COMPRESS and list(spec.threads) == [2]


def test_no_limit_is_sent_where_none_is_given() -> None:
    spec = job_spec(Wanted("m", on=["pi"]))
    assert not spec.scaling and not spec.profile
    assert spec.limits == jobs_pb2.Limits() and not spec.refuse_unfit and not spec.power_mode


@pytest.mark.parametrize(
    "wrong",
    [
        {"on": []},
        {"on": [" , "]},
        {"p95_ms": 0.0},
        {"p95_ms": math.nan},
        {"max_memory_mb": -1.0},
        {"max_size_mb": math.inf},
        {"threads": [0]},
        {"batch": [-2]},
        {"minimize": "speed"},
        {"budget": "soon"},
        {"sustained": "long"},
        {"device_samples": -1},
        {"if_not_quiet": "wait"},
        {"max_drop": "a lot"},
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        job_spec(Wanted("m", **({"on": ["pi"]} | wrong)))  # type: ignore[arg-type]
    assert caught.value.code == "USAGE"
    assert ";" in caught.value.message, "the sentence says what to do"


def test_objectives_are_those_of_the_protocol() -> None:
    assert objective("size") == jobs_pb2.OBJECTIVE_SIZE
    assert {objective(word) for word in ("latency", "energy", "size", "memory")} == set(jobs_pb2.Objective.values()) - {
        0
    }


def test_a_recipe_is_a_name_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\nsteps: []\n")
    Path("pruned").write_text("name: here\n")
    assert recipe_source("small-and-quick").name == "small-and-quick"
    assert recipe_source("mine.yaml").yaml.startswith("name: mine")
    assert recipe_source("pruned").yaml == "name: here\n", "a file of that name wins"


def test_a_recipe_file_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        recipe_source(str(tmp_path / "missing.yaml"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 70_000)
    with pytest.raises(InvalidInput, match="too large for a recipe"):
        recipe_source(str(large))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="is not text"):
        recipe_source(str(binary))


@given(st.text(max_size=100))
def test_a_name_made_from_a_file_fits_the_server(stem: str) -> None:
    try:
        name = name_for(stem)
    except InvalidInput:
        return
    assert 1 <= len(name) <= 64
    assert all(c.isascii() and (c.isalnum() or c in "_.-") for c in name)
    assert name[0].isalnum()


def test_names_are_kept_once_and_in_order() -> None:
    assert split_names(["b,a", "a", " c ,"]) == ["b", "a", "c"]


def test_each_latency_has_its_own_limit() -> None:
    limits = job_spec(Wanted("net", on=["pi"], p95_ms=5, p95_end_to_end_ms=8.5)).limits
    assert (limits.p95_ms, limits.p95_end_to_end_ms) == (5, 8.5)
    assert not job_spec(Wanted("net", on=["pi"], p95_ms=5)).limits.HasField("p95_end_to_end_ms")
    with pytest.raises(UsageError, match="--p95-end-to-end-ms 0 is no limit"):
        job_spec(Wanted("net", on=["pi"], p95_end_to_end_ms=0))
