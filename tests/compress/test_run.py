"""One task in a child of its own: what it leaves behind, however it ends."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fleetfit
from fleetfit.compress import tasks
from fleetfit.compress.export.registry import declared
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import Compress, IntakeModel, IntakeRecovered, Lower, Recovered, TaskProgress
from fleetfit.core.children import EXIT_OUT_OF_MEMORY, Limits
from fleetfit.core.digests import sha256_file
from fleetfit.core.hostlock import host_lock
from fleetfit.runtimes.registry import runtime

from .conftest import Ended, Trained, pictures, save

RECIPE = """
name: everything
steps:
  - activation_pruning: {ratio: 0.5}
  - low_rank: {energy: 0.9}
  - distill: {epochs: 1}
  - quantize: {mode: static}
"""


def _work(recipe: str, **more: object) -> Compress:
    text = Recipe.from_yaml(recipe).to_yaml() if recipe else ""
    return Compress(format="pt2", recipe=text, task="classification", metric="accuracy", **more)  # type: ignore[arg-type]


def _files(trained: Trained) -> dict[str, Path]:
    return {"model": trained.model, "train.npz": trained.train, "validation.npz": trained.validation}


def test_all_passes_in_one_recipe_leave_builds_and_a_lineage(trained: Trained, run_task: Callable[..., Ended]) -> None:
    began = time.monotonic_ns()
    ended = run_task(_work(RECIPE), _files(trained))
    assert ended.outcome.kind == "ok", ended.outcome.stderr_tail
    result = ended.result
    assert result is not None and result.error is None and result.compress is not None
    facts = result.compress
    assert [line.pass_name for line in facts.lineage] == [
        "original",
        "activation_pruning",
        "low_rank",
        "distill",
        "quantize",
    ]
    original, pruned = facts.lineage[:2]
    assert pruned.parameters < original.parameters and pruned.macs < original.macs
    for line in facts.lineage:
        assert line.metric is not None and line.metric.split == "validation" and line.metric.n == 200
        assert line.metric.ci95[0] <= line.metric.value <= line.metric.ci95[1]
        assert line.seconds >= 0
    assert facts.lineage[3].training_steps > 0
    assert facts.lineage[-1].metric is not None and facts.lineage[-1].metric.value > 80
    (build,) = facts.builds
    path = ended.folder / "out" / build.file
    assert (build.size_bytes, build.sha256) == (path.stat().st_size, sha256_file(path))
    assert 0 < build.integer_operators <= build.total_operators
    assert [tensor.name for tensor in build.inputs] == ["image"]
    variant = ended.folder / "out" / "variant.pt2"
    assert facts.trainable is not None and facts.trainable.file == variant.name
    assert (facts.trainable.size_bytes, facts.trainable.sha256) == (variant.stat().st_size, sha256_file(variant))
    (window,) = result.held
    assert began < window.begin_monotonic_ns < window.end_monotonic_ns < time.monotonic_ns()
    assert "rlimits" in result.confinement
    # A fresh process finds the same bytes: they may be stored under the key of their inputs.
    again = run_task(_work(RECIPE), _files(trained)).result
    assert again is not None and again.compress is not None
    assert again.compress.builds == facts.builds and again.compress.trainable == facts.trainable
    progress = TaskProgress.model_validate_json((ended.folder / "progress.json").read_text())
    assert progress.fraction > 0.8 and progress.remaining_s is not None


@pytest.mark.parametrize("name", ["openvino", "ncnn"])
def test_a_variant_is_lowered_to_another_runtime_by_a_confined_child(
    name: str, trained: Trained, run_task: Callable[..., Ended], tmp_path: Path
) -> None:
    here = declared(name).availability()
    if not here.available:
        pytest.skip(here.reason)
    onnx = tmp_path / "exported.onnx"
    onnx.write_bytes(trained.onnx)
    files = {"model": trained.model, "build.onnx": onnx, "validation.npz": trained.validation}
    ended = run_task(Lower(runtime=name), files)
    assert ended.outcome.kind == "ok", ended.outcome.stderr_tail
    result = ended.result
    assert result is not None and result.error is None, result
    build = result.build
    assert build is not None and (build.runtime, build.format) == (name, name)
    path = ended.folder / "out" / build.file
    assert (build.size_bytes, build.sha256) == (path.stat().st_size, sha256_file(path))
    assert build.largest_difference is not None and 0 < build.largest_difference < 1e-2
    with np.load(trained.validation) as data:
        feeds = {"image": data["image"][:3]}
    expected = runtime("onnxruntime").load(onnx.read_bytes(), threads=1).run(feeds)
    found = runtime(name).load(path.read_bytes(), threads=1).run(feeds)
    assert expected.keys() == found.keys()
    for output, values in expected.items():
        np.testing.assert_allclose(found[output], values, rtol=1e-3, atol=1e-3)


def test_a_runtime_that_no_exporter_makes_builds_for_is_a_result(
    trained: Trained, run_task: Callable[..., Ended]
) -> None:
    result = run_task(Lower(runtime="abacus"), {"model": trained.model}).result
    assert result is not None and result.error is not None
    assert "no builds can be made for 'abacus'" in result.error.message


def test_the_original_is_built_without_data(trained: Trained, run_task: Callable[..., Ended]) -> None:
    ended = run_task(Compress(format="pt2", recipe=""), {"model": trained.model})
    assert ended.result is not None and ended.result.compress is not None, ended.result
    (line,) = ended.result.compress.lineage
    assert line.metric is None and line.parameters == 8 * 9 + 8 + 16 + 128 * 32 + 32 + 32 * 4 + 4
    assert ended.result.compress.builds[0].largest_difference is not None


def test_a_recipe_that_lacks_its_data_is_a_result(trained: Trained, run_task: Callable[..., Ended]) -> None:
    ended = run_task(_work("name: a\nsteps: [distill: {}]"), {"model": trained.model})
    assert ended.outcome.kind == "ok" and ended.result is not None and ended.result.error is not None
    error = ended.result.error
    assert error.code == "INVALID_RECIPE" and "--data" in error.message and "\n" not in error.message
    assert len(ended.result.held) == 1


def test_what_is_out_of_reach_is_a_result_that_is_no_error(trained: Trained, run_task: Callable[..., Ended]) -> None:
    text = "{name: a, steps: [quantize: {mode: dynamic}]}"
    limits = [tasks.Limits(max_size_bytes=100), tasks.Limits(max_size_bytes=50)]
    ended = run_task(Compress(format="onnx", recipe=text, limits=limits), {"model": trained.fixed})
    assert ended.result is not None and ended.result.error is None and ended.result.stopped is not None, ended.result
    first, second = ended.result.stopped.reasons
    assert "stopped before quantize" in first and "100 bytes" in first and "50 bytes" in second
    assert list((ended.folder / "out").iterdir()) == []


def test_a_damaged_model_is_a_result(tmp_path: Path, run_task: Callable[..., Ended], trained: Trained) -> None:
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(trained.model.read_bytes()[:-300])
    ended = run_task(_work(""), {"model": cut})
    assert ended.outcome.kind == "ok" and ended.result is not None and ended.result.error is not None
    assert ended.result.error.code == "INVALID_MODEL"
    assert "Traceback" not in ended.result.error.message


def test_too_little_memory_is_said_so(trained: Trained, run_task: Callable[..., Ended], tmp_path: Path) -> None:
    # The limit holds the imports and the threads with room to spare, where a failed allocation may hang native code; an
    # epoch in one batch asks for blocks of 123 MB, one after the other.
    many = pictures(60_000, 3)
    files = _files(trained) | {"train.npz": save(tmp_path / "train.npz", many)}
    recipe = "name: a\nsteps: [distill: {epochs: 1, batch: 100000}]"
    ended = run_task(_work(recipe), files, Limits(memory_bytes=600 << 20, wall_s=90))
    assert ended.outcome.kind == "out_of_memory", (ended.outcome, ended.result)
    if ended.outcome.exit_code == -signal.SIGSEGV:
        return  # Native code met the limit first: it then ends without a word, now and then.
    assert ended.outcome.exit_code == EXIT_OUT_OF_MEMORY
    assert ended.result is not None and ended.result.error is not None
    assert ended.result.error.code == "RESOURCE_EXHAUSTED" and "memory" in ended.result.error.message


def test_a_file_larger_than_allowed_is_said_so(trained: Trained, run_task: Callable[..., Ended]) -> None:
    ended = run_task(_work(""), _files(trained), Limits(file_bytes=6_000, wall_s=90))
    assert ended.result is not None and ended.result.error is not None, ended.outcome
    assert ended.result.error.code == "RESOURCE_EXHAUSTED"
    assert not (ended.folder / "out").exists()


def test_the_child_waits_for_the_host_and_says_so(trained: Trained, run_task: Callable[..., Ended]) -> None:
    seen: list[str] = []
    released: list[int] = []

    def hold(folder: Path) -> None:
        with host_lock():
            ready.set()
            deadline = time.monotonic() + 30
            while not seen and time.monotonic() < deadline:
                for path in folder.glob("task*/progress.json"):
                    seen.append(json.loads(path.read_text())["activity"])
                time.sleep(0.05)
            time.sleep(0.3)
            released.append(time.monotonic_ns())

    ready = threading.Event()
    holder = threading.Thread(target=hold, args=(trained_folder(run_task),))
    holder.start()
    ready.wait(10)
    ended = run_task(IntakeModel(format="pt2"), {"model": trained.model})
    holder.join()
    assert seen == ["waiting for this machine to be free"]
    assert ended.result is not None and ended.result.held[0].begin_monotonic_ns >= released[0]
    # Intake runs in the same child.
    assert ended.result.model is not None
    assert ended.result.model.trainable and ended.result.model.recognised_share == 1.0


def trained_folder(run_task: Callable[..., Ended]) -> Path:
    """The folder in which `run_task` makes its tasks."""
    cells = run_task.__closure__ or ()
    return next(cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Path))


def test_a_network_that_its_user_trained_goes_on_where_the_recipe_was(
    trained: Trained, run_task: Callable[..., Ended], tmp_path: Path
) -> None:
    """The recipe up to its `quantize`, the user's own training, the check of what comes back, and then the rest."""
    recipe = "{name: own, steps: [activation_pruning: {ratio: 0.5}, quantize: {mode: static}]}"
    made = run_task(_work(recipe), _files(trained)).result
    assert made is not None and made.compress is not None
    variant = tmp_path / "task0" / "out" / "variant.pt2"
    module = fleetfit.trainable(variant)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    module.train()
    for _ in range(20):
        images, targets = (
            torch.from_numpy(a) for a in (trained.train_arrays.inputs["image"], trained.train_arrays.targets)
        )
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), targets).backward()
        optimizer.step()
    file = fleetfit.export(module.eval(), images[:2], tmp_path / "trained.pt2")
    checked = run_task(IntakeRecovered(), {"variant": variant, "trained": file})
    assert checked.result is not None and checked.result.recovered is not None, checked.outcome.stderr_tail
    found = checked.result.recovered
    assert 0 < found.changed <= found.tensors and found.parameters == made.compress.parameters and not found.notes
    assert {"landlock", "seccomp"} & set(checked.result.confinement) or "rlimits" in checked.result.confinement
    network = checked.folder / "out" / found.network.file
    assert sha256_file(network) == found.network.sha256

    earlier = Recovered(variant="ab" * 32, file=sha256_file(file), lineage=made.compress.lineage[1:-1])
    ended = run_task(_work(recipe, recovered=earlier), {**_files(trained), "recovered.pt2": network})
    assert ended.result is not None and ended.result.compress is not None, ended.result
    facts = ended.result.compress
    assert [line.pass_name for line in facts.lineage] == ["original", "activation_pruning", "recovered", "quantize"]
    line = facts.lineage[2]
    assert line.parameters_of_pass == {"variant": "ab" * 32, "file": sha256_file(file)}
    assert line.notes[0].startswith("trained by its user, outside fleetfit: the file ")
    scores = [step.metric.value for step in facts.lineage if step.metric is not None]
    assert len(scores) == 4 and scores[2] > scores[1] and scores[0] == made.compress.lineage[0].metric.value
    assert facts.builds[0].integer_operators == made.compress.builds[0].integer_operators > 0
    assert facts.builds[0].sha256 != made.compress.builds[0].sha256
    assert facts.trainable is not None and facts.trainable.sha256 == found.network.sha256, "it can be trained further"

    another = run_task(IntakeRecovered(), {"variant": variant, "trained": trained.model}).result
    assert another is not None and another.error is not None and another.error.code == "INVALID_MODEL"
    assert "it is not the variant's network: at the layer" in another.error.message
