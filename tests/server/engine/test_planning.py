from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.compress.recipe import CONTROL, Recipe, default_recipes
from fleetfit.core.digests import key_of
from fleetfit.core.errors import InvalidData, InvalidInput, InvalidRecipe
from fleetfit.proto.v1 import jobs_pb2, snapshot_pb2
from fleetfit.proto.versions import REFUSES
from fleetfit.server.engine.keys import build_key, numeric_environment, variant_key
from fleetfit.server.engine.planning import (
    PlannedCandidate,
    PlannedData,
    PlannedDevice,
    PlannedModel,
    emulation_notes,
    expected_compress_s,
    expected_size_bytes,
    judged_by,
    limits_of,
    plan_candidates,
    width_notes,
)

from .harness import CUDA

MakeSnapshot = Callable[..., snapshot_pb2.DeviceSnapshot]
COMPRESS = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS)
INT8 = Recipe.from_yaml("{name: int8, steps: [quantize: {dtype: int8, mode: dynamic}]}")
PRUNED = Recipe.from_yaml("{name: pruned, steps: [activation_pruning: {ratio: 0.5}]}")
TRAINED = Recipe.from_yaml("{name: trained, steps: [activation_pruning: {ratio: 0.5}, distill: {epochs: 2}]}")
LONGER = Recipe.from_yaml("{name: longer, steps: [activation_pruning: {ratio: 0.7}, distill: {epochs: 6}]}")


def plan(
    spec: jobs_pb2.JobSpec,
    model: PlannedModel,
    data: PlannedData | None,
    devices: list[PlannedDevice],
    *recipes: Recipe,
) -> list[PlannedCandidate]:
    return plan_candidates(spec, model, data, devices, recipes, compress_threads=1)


def test_a_plan_says_that_nothing_is_chosen_for_emulated_devices(make_snapshot: MakeSnapshot) -> None:
    played = make_snapshot()
    played.emulated = True
    fleet = [PlannedDevice("1", "pi", played), PlannedDevice("2", "server", make_snapshot())]
    (note,) = emulation_notes(COMPRESS, fleet)
    assert note.startswith("pi: emulated, so nothing will be chosen there") and "--accept-emulated" in note
    accepted = jobs_pb2.JobSpec()
    accepted.CopyFrom(COMPRESS)
    accepted.accept_emulated = True
    assert emulation_notes(accepted, fleet) == emulation_notes(COMPRESS, fleet[1:]) == []


def test_each_vector_width_has_its_variant_and_equal_ones_share_it(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice, make_snapshot: MakeSnapshot
) -> None:
    own = Recipe.from_yaml("{name: own, steps: [activation_pruning: {ratio: 0.5, round_to: 2}]}")
    fleet = [
        PlannedDevice("1", "pi", make_snapshot(), profile="raspberry-pi-4", round_to=4),
        PlannedDevice("2", "server", make_snapshot(), profile="x86-amx", round_to=16),
        PlannedDevice("3", "server-2", make_snapshot(), profile="x86-avx512-vnni", round_to=16),
    ]
    found = plan(COMPRESS, planned_model, planned_data, fleet, PRUNED, own, INT8)
    keys = {(c.device.name, c.recipe.name): c.variant_key for c in found}
    assert keys["server", "pruned"] == keys["server-2", "pruned"] != keys["pi", "pruned"]
    for same in ("original", "own", "int8"):
        assert len({keys[device.name, same] for device in fleet}) == 1
    widths = {c.device.name: c.recipe.steps[0].parameters()["round_to"] for c in found if c.recipe.name == "pruned"}
    assert widths == {"pi": 4, "server": 16, "server-2": 16}, "what is made is what the key names"
    assert width_notes(fleet, [PRUNED, own, INT8]) == [
        "pruned: widths are rounded up to multiples of 4 for pi (raspberry-pi-4) and of 16 for server (x86-amx), server-2 "
        "(x86-avx512-vnni); 'round_to' in a recipe overrides this"
    ]
    assert width_notes(fleet, [own, INT8]) == []


def test_the_original_comes_first_and_training_brings_a_control(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    found = plan(COMPRESS, planned_model, planned_data, [planned_device], PRUNED, TRAINED, LONGER, INT8)
    assert [(c.role, c.recipe.name) for c in found] == [
        ("original", "original"),
        ("control", CONTROL),
        ("recipe", "pruned"),
        ("recipe", "trained"),
        ("recipe", "longer"),
        ("recipe", "int8"),
    ]
    training = found[1].recipe.training(100)
    assert training is not None
    assert training["epochs"] == 6, "the control is trained as long as the heaviest recipe"


def test_the_heaviest_recipe_is_the_one_that_trains_on_most_samples(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    """More samples than there are is all of them, and many epochs of few samples may be less than one of all."""
    many = Recipe.from_yaml("{name: many, steps: [distill: {epochs: 9, samples: 60000}]}")
    few = Recipe.from_yaml("{name: few, steps: [distill: {epochs: 20, samples: 8}]}")
    found = plan(COMPRESS, planned_model, planned_data, [planned_device], few, TRAINED, many)
    training = found[1].recipe.training(100)
    assert training is not None
    assert training["epochs"] == 9


def test_without_training_there_is_no_control(planned_model: PlannedModel, planned_device: PlannedDevice) -> None:
    assert [c.role for c in plan(COMPRESS, planned_model, None, [planned_device], INT8)] == ["original", "recipe"]


def test_a_benchmark_is_the_original_only(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_BENCH)
    assert [c.role for c in plan(spec, planned_model, planned_data, [planned_device], INT8)] == ["original"]


def test_every_device_threads_and_batch_has_its_own_baseline(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    other = replace(planned_device, id="other", name="jetson")
    spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, threads=[1, 2], batches=[1, 4])
    found = plan(spec, planned_model, planned_data, [planned_device, other], INT8)
    conditions = {(c.device.name, c.threads, c.batch) for c in found}
    assert len(conditions) == 8
    for condition in conditions:
        here = [c for c in found if (c.device.name, c.threads, c.batch) == condition]
        assert [c.role for c in here] == ["original", "recipe"]
    assert len({c.variant_key for c in found}) == 2, "devices and conditions share what is compressed"


def test_the_same_steps_under_two_names_are_one_candidate(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    twin = INT8.model_copy(update={"name": "twin"})
    found = plan(COMPRESS, planned_model, planned_data, [planned_device], INT8, twin)
    assert [c.recipe.name for c in found] == ["original", "int8"]


def test_the_default_set_is_that_of_the_devices_profile_and_what_is_named_is_for_all(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    def planned(spec: jobs_pb2.JobSpec) -> set[str]:
        device = replace(planned_device, recipes=frozenset({"int8"}))
        return {c.recipe.name for c in plan(spec, planned_model, planned_data, [device], INT8, PRUNED)}

    assert planned(COMPRESS) == {"original", "int8"}
    named = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, recipes=[jobs_pb2.RecipeSource(name="pruned")])
    assert planned(named) == {"original", "int8", "pruned"}


def test_a_device_without_a_runtime_is_skipped_with_the_reason(
    planned_model: PlannedModel, planned_device: PlannedDevice, make_snapshot: MakeSnapshot
) -> None:
    facts = make_snapshot()
    facts.runtimes[0].available = False
    facts.runtimes[0].reason = "the wheel is missing"
    found = plan(COMPRESS, planned_model, None, [replace(planned_device, snapshot=facts)], INT8)
    assert all("onnxruntime: the wheel is missing" in c.skip_reason for c in found)


def test_a_runtime_that_no_build_is_made_for_is_not_chosen(
    planned_model: PlannedModel, planned_device: PlannedDevice, make_snapshot: MakeSnapshot
) -> None:
    """Builds are made for ONNX Runtime; another that loads ONNX too would wait for a build for ever."""
    both = replace(planned_device, snapshot=make_snapshot(runtimes=("another", "onnxruntime")))
    assert {c.runtime for c in plan(COMPRESS, planned_model, None, [both], INT8)} == {"onnxruntime"}
    other = replace(planned_device, snapshot=make_snapshot(runtimes=("another",)))
    assert all(c.skip_reason for c in plan(COMPRESS, planned_model, None, [other], INT8))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (jobs_pb2.JobSpec(kind=1, threads=[3]), "2 usable cores"),
        (jobs_pb2.JobSpec(kind=1, threads=[0]), "cannot be measured with 0 threads"),
        (jobs_pb2.JobSpec(kind=1, batches=[0]), "batch of 0"),
        (jobs_pb2.JobSpec(kind=1, metric="mean_absolute_error"), "judges a regression"),
        (jobs_pb2.JobSpec(kind=1, metric="beauty"), "choose one of accuracy"),
        (jobs_pb2.JobSpec(kind=1, metric="accuracy:mask"), "names an output that .* has not; its outputs are"),
    ],
)
def test_requests_that_cannot_be_met(
    spec: jobs_pb2.JobSpec,
    words: str,
    planned_model: PlannedModel,
    planned_data: PlannedData,
    planned_device: PlannedDevice,
) -> None:
    with pytest.raises(InvalidInput, match=words):
        plan(spec, planned_model, planned_data, [planned_device], INT8)


def test_what_an_onnx_file_cannot_do(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    onnx = replace(planned_model, format="onnx")
    with pytest.raises(InvalidRecipe, match="'pruned' changes layers"):
        plan(COMPRESS, onnx, planned_data, [planned_device], PRUNED)
    assert len(plan(COMPRESS, onnx, planned_data, [planned_device], INT8)) == 2


def test_what_needs_data_says_so(planned_model: PlannedModel, planned_device: PlannedDevice) -> None:
    with pytest.raises(InvalidInput, match="needs data; name a dataset with --data"):
        plan(COMPRESS, planned_model, None, [planned_device], TRAINED)
    with pytest.raises(InvalidInput, match="no device is named"):
        plan(COMPRESS, planned_model, None, [], INT8)


def test_a_fixed_batch_is_kept(planned_model: PlannedModel, planned_device: PlannedDevice) -> None:
    inputs = [planned_model.facts.inputs[0].model_copy(update={"shape": [8, 4]})]
    fixed = replace(planned_model, facts=planned_model.facts.model_copy(update={"inputs": inputs}))
    assert {c.batch for c in plan(COMPRESS, fixed, None, [planned_device], INT8)} == {8}
    with pytest.raises(InvalidInput, match="batches of 8 only.*--batch 8"):
        plan(jobs_pb2.JobSpec(kind=1, batches=[1]), fixed, None, [planned_device], INT8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "y"}, "has no array 'x'"),
        ({"shape": [100, 5]}, r"has the shape \[100, 5\]"),
        ({"shape": [100, 4, 1]}, "has the shape"),
        ({"dtype": "float64"}, "is float64.*takes float32"),
    ],
)
def test_data_that_do_not_fit(
    change: dict[str, object],
    words: str,
    planned_model: PlannedModel,
    planned_data: PlannedData,
    planned_device: PlannedDevice,
) -> None:
    wrong = planned_data.facts.model_copy(update={"inputs": [planned_data.facts.inputs[0].model_copy(update=change)]})
    with pytest.raises(InvalidData, match=words):
        plan(COMPRESS, planned_model, replace(planned_data, facts=wrong), [planned_device], INT8)


def test_the_default_loss_is_the_metrics_own_and_a_benchmark_has_none() -> None:
    assert limits_of(COMPRESS, "accuracy").max_drop_points == 1
    assert limits_of(COMPRESS, "mean_absolute_error").max_drop_percent == 2
    assert limits_of(jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_BENCH), "accuracy").max_drop_points is None
    given = jobs_pb2.JobSpec(kind=1, limits=jobs_pb2.Limits(max_drop_percent=0, p95_ms=3))
    limits = limits_of(given, "accuracy")
    assert (limits.max_drop_points, limits.max_drop_percent, limits.p95_ms) == (None, 0, 3)
    with pytest.raises(InvalidInput, match="cannot be negative"):
        limits_of(jobs_pb2.JobSpec(kind=1, limits=jobs_pb2.Limits(max_drop_points=-1)), "accuracy")


def test_a_metric_without_targets_is_refused(planned_data: PlannedData) -> None:
    bare = replace(
        planned_data, facts=planned_data.facts.model_copy(update={"targets": None, "task": "", "metric": ""})
    )
    assert judged_by(COMPRESS, bare) == judged_by(COMPRESS, None) == ""
    with pytest.raises(InvalidInput, match="needs a dataset with targets"):
        judged_by(jobs_pb2.JobSpec(kind=1, metric="accuracy"), bare)
    agreement = jobs_pb2.JobSpec(kind=1, metric="agreement")
    assert judged_by(agreement, bare) == judged_by(agreement, planned_data) == "agreement"
    with pytest.raises(InvalidInput, match="needs a dataset; name one"):
        judged_by(agreement, None)


def test_the_default_set_can_be_planned(
    planned_model: PlannedModel, planned_data: PlannedData, planned_device: PlannedDevice
) -> None:
    recipes = list(default_recipes().values())
    found = plan(COMPRESS, planned_model, planned_data, [planned_device], *recipes)
    assert len(found) == len(recipes) + 2
    assert len({c.variant_key for c in found}) == len(found)


def test_guesses_are_positive_and_know_quantization_and_training(
    planned_model: PlannedModel, planned_data: PlannedData
) -> None:
    assert 0 < expected_size_bytes(planned_model, INT8) < expected_size_bytes(planned_model, PRUNED)
    assert 0 < expected_compress_s(planned_model, planned_data, INT8)
    big = replace(planned_model, facts=planned_model.facts.model_copy(update={"macs": 10**9}))
    assert expected_compress_s(big, planned_data, LONGER) > expected_compress_s(big, planned_data, TRAINED)


@pytest.mark.parametrize("recipe", [Recipe.original(), INT8, PRUNED, TRAINED])
def test_what_the_processor_makes_keeps_the_key_of_before_there_was_a_choice(recipe: Recipe) -> None:
    old = {
        "model": KEY["model_sha256"],
        "splits": KEY["splits"],
        "recipe": recipe.key_material(),
        "metric": "accuracy",
        "task": "classification",
        "seed": 0,
        "threads": 1,
        "environment": numeric_environment(),
    }
    assert key(recipe=recipe) == key_of(old)
    # What trains nowhere is the same on every server.
    assert (key(recipe=recipe, cuda=CUDA) == key_of(old)) == (recipe != TRAINED)


@pytest.mark.parametrize("name", ["name", "capability", "cuda", "cudnn", "driver"])
def test_every_device_that_trains_has_its_own_keys(name: str) -> None:
    another = CUDA.model_copy(update={name: "another"})
    assert len({key(recipe=TRAINED, cuda=device) for device in (None, CUDA, another)}) == 3


KEY = {
    "model_sha256": "a" * 64,
    "splits": {"train": "b" * 64},
    "recipe": INT8,
    "metric": "accuracy",
    "task": "classification",
    "seed": 0,
    "threads": 1,
}


def key(**changes: object) -> str:
    return variant_key(**(KEY | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "c" * 64},
        {"splits": {"train": "c" * 64}},
        {"splits": {}},
        {"recipe": PRUNED},
        {"metric": ""},
        {"seed": 1},
        {"threads": 2},
    ],
)
def test_everything_that_changes_a_result_changes_its_key(change: dict[str, object]) -> None:
    assert key(**change) != key()


def test_a_recipes_name_does_not_change_the_key() -> None:
    assert key(recipe=INT8.model_copy(update={"name": "other"})) == key()
    assert key(recipe=Recipe.from_yaml(INT8.to_yaml())) == key()


def test_the_environment_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    assert {"torch", "onnxruntime", "machine", "vector"} <= set(numeric_environment())
    changed = numeric_environment() | {"torch": "0"}
    monkeypatch.setattr("fleetfit.server.engine.keys.numeric_environment", lambda: changed)
    assert key() != before


@given(parts=st.tuples(st.text(max_size=3), st.text(max_size=3), st.text(max_size=3)))
def test_build_keys_do_not_run_into_each_other(parts: tuple[str, str, str]) -> None:
    assert (build_key(*parts) == build_key("a", "b", "c")) == (parts == ("a", "b", "c"))


def test_boxes_are_judged_as_their_dataset_declares_them(planned_data: PlannedData) -> None:
    declared = planned_data.facts.model_copy(update={"task": "detection", "metric": "map@cxcywh"})
    boxes = replace(planned_data, facts=declared)
    for asked, judged in (
        ("", "map@cxcywh"),
        ("map50", "map50@cxcywh"),
        ("map75@cxcywh:b,s", "map75@cxcywh:b,s"),
        ("map:b,s", "map@cxcywh:b,s"),
    ):
        assert judged_by(jobs_pb2.JobSpec(kind=1, metric=asked), boxes) == judged
    with pytest.raises(InvalidInput, match=r"reads boxes as xyxy, and those of flowers .* write map50@cxcywh"):
        judged_by(jobs_pb2.JobSpec(kind=1, metric="map50@xyxy"), boxes)


def test_a_device_that_cannot_refuse_is_refused_itself(
    planned_model: PlannedModel, planned_data: PlannedData, make_snapshot: MakeSnapshot
) -> None:
    old, new = (
        PlannedDevice(name, name, make_snapshot(), capabilities=frozenset(can))
        for name, can in (("old", ()), ("new", (REFUSES,)))
    )
    wanted = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, refuse_unfit=True)
    with pytest.raises(
        InvalidInput, match="the agent of old cannot refuse a device that is not quiet; update fleetfit"
    ):
        plan(wanted, planned_model, planned_data, [old, new], PRUNED)
    assert plan(wanted, planned_model, planned_data, [new], PRUNED)
    assert plan(COMPRESS, planned_model, planned_data, [old], PRUNED)
