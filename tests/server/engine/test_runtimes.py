"""Jobs in several runtimes: what is planned, refused, built once, and timed beside what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetfit.compress.recipe import CONTROL, Recipe
from fleetfit.compress.tasks import Lower, Task, TaskError
from fleetfit.core.errors import InvalidInput, InvalidRecipe
from fleetfit.proto.v1 import jobs_pb2, measurement_pb2, snapshot_pb2, work_pb2
from fleetfit.proto.versions import PAIRS_RUNTIMES
from fleetfit.server.engine.planning import (
    PlannedCandidate,
    PlannedData,
    PlannedDevice,
    PlannedModel,
    plan_candidates,
    runtime_notes,
)
from fleetfit.server.engine.targets import Target, targets
from fleetfit.server.report.summary import MeasurementSummary

from .harness import PRUNED, House, measured, request

pytestmark = pytest.mark.usefixtures("paper_reports")

MakeSnapshot = Callable[..., snapshot_pb2.DeviceSnapshot]
ORT, VINO = "onnxruntime", "openvino"
INT8 = "{name: int8, steps: [quantize: {dtype: int8, mode: dynamic}]}"
RECIPES = [
    Recipe.from_yaml(text)
    for text in (PRUNED, "{name: trained, steps: [activation_pruning: {ratio: 0.5}, distill: {epochs: 1}]}", INT8)
]


@pytest.fixture(autouse=True)
def makeable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed here: builds for openvino can be made, for abacus not."""
    known = {
        ORT: targets()[ORT],
        VINO: Target(VINO, VINO, {"openvino": "2026.1"}),
        "abacus": Target("abacus", "beads", missing="install beads there and start it again"),
    }
    for module in ("planning", "lowering"):
        monkeypatch.setattr(f"fleetfit.server.engine.{module}.targets", lambda: known)


@pytest.fixture
def both(make_snapshot: MakeSnapshot) -> PlannedDevice:
    return PlannedDevice("d", "pi", make_snapshot(runtimes=[ORT, VINO]), capabilities=frozenset({PAIRS_RUNTIMES}))


def spec(*runtimes: str, named: bool = False) -> jobs_pb2.JobSpec:
    """`named`: as if the user had named the recipes."""
    sources = [jobs_pb2.RecipeSource(name=one.name) for one in RECIPES] if named else []
    return jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, runtimes=runtimes, recipes=sources)


def plan(
    wanted: jobs_pb2.JobSpec, model: PlannedModel, data: PlannedData, device: PlannedDevice, *recipes: Recipe
) -> list[PlannedCandidate]:
    return plan_candidates(wanted, model, data, [device], recipes or RECIPES, compress_threads=1)


def told(found: list[PlannedCandidate]) -> list[tuple[str, str]]:
    return [(c.recipe.name, c.runtime) for c in found]


def test_without_a_wish_the_profile_says_it(
    planned_model: PlannedModel, planned_data: PlannedData, both: PlannedDevice
) -> None:
    assert {c.runtime for c in plan(spec(), planned_model, planned_data, both)} == {ORT}
    likes_both = replace(both, runtimes=(VINO, "ncnn", ORT))
    assert {c.runtime for c in plan(spec(), planned_model, planned_data, likes_both)} == {ORT, VINO}
    old = replace(likes_both, capabilities=frozenset())
    assert {c.runtime for c in plan(spec(), planned_model, planned_data, old)} == {VINO}


@pytest.mark.parametrize("wish", [(ORT, VINO), ("all",), (ORT, "all")])
def test_every_recipe_that_a_runtime_can_have_is_measured_in_it(
    wish: tuple[str, ...], planned_model: PlannedModel, planned_data: PlannedData, both: PlannedDevice
) -> None:
    found = plan(spec(*wish), planned_model, planned_data, both)
    assert told(found) == [
        ("original", ORT),
        (CONTROL, ORT),
        ("pruned", ORT),
        ("trained", ORT),
        ("int8", ORT),
        ("original", VINO),
        ("pruned", VINO),
        ("trained", VINO),
    ]
    keys = {(c.recipe.name, c.runtime): c.variant_key for c in found}
    assert keys["pruned", ORT] == keys["pruned", VINO], "one variant, two builds"
    assert runtime_notes(found) == ["int8: built for onnxruntime alone, because quantization makes ONNX files"]


def test_quantized_recipes_go_where_their_numbers_are_taken(
    planned_model: PlannedModel,
    planned_data: PlannedData,
    make_snapshot: MakeSnapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {ORT: targets()[ORT], "tensorrt": targets()["tensorrt"]}
    monkeypatch.setattr("fleetfit.server.engine.planning.targets", lambda: known)
    capabilities = frozenset({PAIRS_RUNTIMES})
    board = PlannedDevice("d", "orin", make_snapshot(runtimes=[ORT, "tensorrt"]), capabilities=capabilities)
    recipes = [
        Recipe.from_yaml(f"{{name: {name}, steps: [quantize: {{{how}}}]}}")
        for name, how in (("static", "dtype: int8"), ("dynamic", "dtype: int8, mode: dynamic"), ("half", "dtype: fp16"))
    ]
    found = plan(spec("all"), planned_model, planned_data, board, *recipes)
    there = {c.recipe.name for c in found if c.runtime == "tensorrt" and c.role == "recipe"}
    assert there == {"static", "half"}
    assert runtime_notes(found) == ["dynamic: built for onnxruntime alone, because quantization makes ONNX files"]
    assert (targets()["onnxruntime-cuda"].quantized, targets()["openvino"].quantized) == ({"fp16"}, set())
    assert targets()["onnxruntime-tensorrt"].quantized == {"int8-static", "fp16"}
    assert (targets()["torch_tensorrt"].quantized, targets()["torch_tensorrt"].format) == ({"fp16"}, "aten")


def test_a_runtime_alone_comes_with_its_own_original_and_control(
    planned_model: PlannedModel, planned_data: PlannedData, both: PlannedDevice
) -> None:
    # An old agent will do: nothing compares two runtimes.
    old = replace(both, capabilities=frozenset())
    found = plan(spec(VINO), planned_model, planned_data, old)
    assert told(found) == [("original", VINO), (CONTROL, VINO), ("pruned", VINO), ("trained", VINO)]


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (("openvina",), "no builds can be made for 'openvina'; choose among onnxruntime, openvino, abacus, or all"),
        (("abacus",), "the server makes no builds for abacus: install beads there and start it again"),
        (
            (VINO,),
            "pi cannot use openvino (its agent does not know it); put that right there and start its agent again",
        ),
        ((ORT, VINO), "pi cannot use openvino"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_asked_for(
    wish: tuple[str, ...],
    sentence: str,
    planned_model: PlannedModel,
    planned_data: PlannedData,
    make_snapshot: MakeSnapshot,
) -> None:
    with pytest.raises(InvalidInput) as refused:
        plan(spec(*wish), planned_model, planned_data, PlannedDevice("d", "pi", make_snapshot()))
    assert sentence in refused.value.message and refused.value.field == "runtimes"


def test_the_devices_own_reason_is_told(
    planned_model: PlannedModel, planned_data: PlannedData, both: PlannedDevice
) -> None:
    snapshot = snapshot_pb2.DeviceSnapshot()
    snapshot.CopyFrom(both.snapshot)
    snapshot.runtimes[1].available, snapshot.runtimes[1].reason = False, "pip install openvino"
    with pytest.raises(InvalidInput, match=r"pi cannot use openvino \(pip install openvino\)"):
        plan(spec(VINO), planned_model, planned_data, replace(both, snapshot=snapshot))
    assert {c.runtime for c in plan(spec("all"), planned_model, planned_data, replace(both, snapshot=snapshot))} == {
        ORT
    }


def test_an_old_agent_is_not_asked_to_compare_runtimes(
    planned_model: PlannedModel, planned_data: PlannedData, both: PlannedDevice
) -> None:
    with pytest.raises(InvalidInput, match="the agent of pi cannot compare onnxruntime and openvino with each other"):
        plan(spec("all"), planned_model, planned_data, replace(both, capabilities=frozenset()))


def test_an_onnx_model_stays_in_onnxruntime(
    planned_model: PlannedModel, planned_data: PlannedData, both: PlannedDevice
) -> None:
    model = replace(planned_model, format="onnx")
    with pytest.raises(InvalidInput, match="proven against PyTorch, which cannot run an ONNX file"):
        plan(spec(VINO), model, planned_data, both, RECIPES[2])
    assert told(plan(spec("all"), model, planned_data, both, RECIPES[2])) == [("original", ORT), ("int8", ORT)]


def test_a_recipe_that_is_named_is_not_left_out_silently(
    planned_model: PlannedModel, planned_data: PlannedData, both: PlannedDevice
) -> None:
    with pytest.raises(
        InvalidRecipe, match="'int8' ends with quantize, which builds for onnxruntime alone, and pi is to be"
    ):
        plan(spec(VINO, named=True), planned_model, planned_data, both)


def test_versions_of_the_exporter_are_in_a_builds_name_and_onnx_builds_keep_theirs() -> None:
    one, other = (Target(VINO, VINO, {"openvino": version}).build_key("v") for version in ("1", "2"))
    assert one != other
    assert targets()[ORT].versions == {}


def test_a_job_in_two_runtimes_makes_each_variant_once_and_ends_with_both(tmp_path: Path) -> None:
    async def run() -> None:
        beside: dict[tuple[str, str], str] = {}

        def answer(lease: work_pb2.TaskLease) -> MeasurementSummary:
            measure: measurement_pb2.MeasureTask = lease.measure
            if not measure.metric_only:
                beside[measure.candidate.build_id, measure.candidate.runtime] = measure.baseline.runtime
            return measured(lease)

        async with House(tmp_path / "state") as house:
            (agent,) = await house.furnish("pi", runtimes=(ORT, VINO))
            agent.answer = answer
            house.employ(agent)
            job = await house.engine.create_job(request(PRUNED, runtimes=["all"]), "r1", "ada")
            ended = await house.ended(job.job_id)
            assert ended.state == jobs_pb2.JOB_STATE_DONE
            assert [(c.recipe, c.runtime, c.state) for c in ended.candidates] == [
                ("original", ORT, "measured"),
                ("pruned", ORT, "measured"),
                ("original", VINO, "measured"),
                ("pruned", VINO, "measured"),
            ]
            assert house.executor.runs["pruned"] == house.executor.runs["original"] == 1
            assert house.executor.runs["for openvino"] == 2
            # Two originals and two variants: the first original ties the second one's runtime to its own.
            assert sorted((runtime, of) for (_, runtime), of in beside.items()) == [
                (ORT, ORT), (ORT, ORT), (VINO, ORT), (VINO, VINO),
            ]  # fmt: skip
            (device,) = (await house.report(job.job_id))["devices"]
            assert [(c["recipe"], c["runtime"], c["status"]) for c in device["candidates"]] == [
                ("original", ORT, "measured"),
                ("pruned", ORT, "measured"),
                ("original", VINO, "measured"),
                ("pruned", VINO, "measured"),
            ]
            assert "pruned in" in device["why"]
            pulled = {one: await house.engine.build(job.job_id, "", device["selected"], one) for one in (ORT, VINO)}
            assert {one: f'"runtime": "{one}"' in answer.manifest_json for one, answer in pulled.items()} == {
                ORT: True,
                VINO: True,
            }
            assert pulled[VINO].build.name == "net-pruned.openvino"
            # A later job finds everything made.
            again = await house.engine.create_job(request(PRUNED, runtimes=[VINO]), "r2", "ada")
            assert (await house.ended(again.job_id)).state == jobs_pb2.JOB_STATE_DONE
            assert house.executor.runs["for openvino"] == 2

    asyncio.run(run())


@pytest.mark.parametrize(("metric", "beside"), [("", False), ("agreement", True), ("user:mine", False)])
def test_a_build_is_judged_where_it_is_made_as_the_job_is_judged(tmp_path: Path, metric: str, beside: bool) -> None:
    async def run() -> None:
        async with House(tmp_path / "state") as house:
            await house.furnish("pi", runtimes=(ORT, VINO))
            await house.engine.create_job(request(PRUNED, runtimes=["all"], metric=metric), "r1", "ada")
            async with asyncio.timeout(20):
                while house.executor.runs["for openvino"] < 2:
                    await asyncio.sleep(0.01)
            task, inputs = house.executor.last["for openvino"]
            assert isinstance(task.work, Lower) and task.work.evidence
            # A user's own metric is computed by nobody here.
            assert task.work.metric == ("" if metric.startswith("user:") else metric or "accuracy")
            assert ("original.onnx" in inputs) == beside
            if beside:
                content = house.store.path(inputs["original.onnx"]).read_bytes()
                assert b"activation_pruning" not in content

    asyncio.run(run())


def test_a_build_that_cannot_be_made_fails_its_candidates_alone_and_is_tried_again_when_resumed(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path / "state") as house:
            (agent,) = await house.furnish("pi", runtimes=(ORT, VINO))
            house.employ(agent)
            house.executor.errors["for openvino"] = TaskError(code="invalid_model", message="it has no such layer")
            job = await house.engine.create_job(request(PRUNED, runtimes=[ORT, VINO]), "r1", "ada")
            ended = await house.ended(job.job_id)
            states = {(c.recipe, c.runtime): (c.state, c.detail) for c in ended.candidates}
            assert states["pruned", ORT] == ("measured", "")
            assert states["original", VINO] == ("failed", "it has no such layer")
            # Told either way: whichever of the two builds was tried first.
            state, reason = states["pruned", VINO]
            assert state == "failed" and reason.endswith("it has no such layer")
            del house.executor.errors["for openvino"]
            await house.engine.resume(job.job_id)
            ended = await house.ended(job.job_id)
            assert {c.state for c in ended.candidates} == {"measured"}

    asyncio.run(run())


def test_a_server_that_dies_while_it_builds_builds_after_its_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with House(tmp_path / "state") as house:
            (agent,) = await house.furnish("pi", runtimes=(ORT, VINO))
            job = await house.engine.create_job(request(PRUNED, runtimes=[VINO]), "r1", "ada")
            run = house.executor.run

            def shut_before_builds(task: Task, *rest: Any) -> Any:
                if task.work.kind == "lower":
                    house.executor.gate.clear()
                return run(task, *rest)

            monkeypatch.setattr(house.executor, "run", shut_before_builds)
            async for message in house.engine.watch(job.job_id):
                if "making original for openvino (working)" in message.progress.activity:
                    break
        async with House(tmp_path / "state") as house:
            house.employ(agent)
            ended = await house.ended(job.job_id)
            assert {(c.runtime, c.state) for c in ended.candidates} == {(VINO, "measured")}

    asyncio.run(run())
