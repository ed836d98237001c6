"""Compression with no server: what lies in the folder afterwards, and what is refused before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fleetfit.client.export import export
from fleetfit.compress.exporter import OnnxSession
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.local import compress_local
from fleetfit.compress.recipe import Recipe, named_recipe
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import AlreadyExists, InvalidInput, InvalidRecipe

from .conftest import Trained


def test_the_build_lies_beside_its_lineage_and_its_manifest(trained: Trained, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(
        "name: mine\nsteps: [activation_pruning: {ratio: 0.5}, distill: {epochs: 1}, quantize: {}]"
    )
    said: list[tuple[float, str]] = []
    random, threads = torch.random.get_rng_state(), torch.get_num_threads()
    out = tmp_path / "new" / "out"
    facts = compress_local(
        trained.model, trained.data, recipe, out, report=lambda part, activity: said.append((part, activity))
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "build.onnx",
        "lineage.json",
        "manifest.json",
        "recipe.yaml",
        "variant.pt2",
    ]
    manifest = json.loads((out / "manifest.json").read_text())
    for name, described in manifest["files"].items():
        assert described == {"sha256": sha256_file(out / name), "size_bytes": (out / name).stat().st_size}
    assert manifest["model"]["sha256"] == sha256_file(trained.model)
    assert json.loads((out / "lineage.json").read_text()) == facts.model_dump(mode="json")
    assert Recipe.from_yaml((out / "recipe.yaml").read_text()) == recipe
    fractions = [part for part, _ in said]
    assert fractions == sorted(fractions) and 0 <= fractions[0] and fractions[-1] <= 1
    # The user's process is as it was.
    assert torch.equal(torch.random.get_rng_state(), random) and torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    # What was made works, and is what the lineage says.
    variant = load_pt2(out / "variant.pt2")
    assert variant.parameters_count() == facts.parameters < facts.lineage[0].parameters
    (logits,) = OnnxSession((out / "build.onnx").read_bytes()).run(trained.validation_arrays.inputs).values()
    assert float((logits.argmax(1) == trained.validation_arrays.targets).mean()) > 0.85


def test_an_uploaded_onnx_file_of_one_batch_is_quantized_and_judged(trained: Trained, tmp_path: Path) -> None:
    facts = compress_local(trained.fixed, trained.data, named_recipe("int8-static"), tmp_path / "out")
    before, after = facts.lineage
    assert before.metric is not None and after.metric is not None
    # The validation split is no multiple of the file's batch: all of it counts all the same.
    assert before.metric.n == after.metric.n and before.metric.n % 3
    assert after.metric.value > before.metric.value - 4
    (build,) = facts.builds
    assert build.integer_operators == 3 and build.size_bytes < trained.fixed.stat().st_size
    assert build.largest_difference is not None and 0 < build.largest_difference < 2
    assert not (tmp_path / "out" / "variant.pt2").exists()


def test_an_onnx_file_cannot_be_trained(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="push the model as a .pt2"):
        compress_local(trained.fixed, trained.data, named_recipe("pruned"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dynamic_quantization_needs_no_data(trained: Trained, tmp_path: Path) -> None:
    facts = compress_local(trained.model, None, named_recipe("int8-dynamic"), tmp_path / "out")
    assert facts.builds[0].integer_operators == 2
    assert any("2 of 3" in note for note in facts.lineage[-1].notes)


def test_what_cannot_work_is_refused_first(trained: Trained, tmp_path: Path) -> None:
    recipe = named_recipe("int8-static")
    with pytest.raises(InvalidRecipe, match="--data"):
        compress_local(trained.model, None, recipe, tmp_path / "out")
    with pytest.raises(InvalidInput, match="there is no file"):
        compress_local(tmp_path / "absent.pt2", trained.data, recipe, tmp_path / "out")
    with pytest.raises(InvalidInput, match="there is no file"):
        compress_local(trained.model, tmp_path / "absent.npz", recipe, tmp_path / "out")
    with pytest.raises(AlreadyExists, match="-o"):
        compress_local(trained.model, trained.data, recipe, trained.model.parent)
    with pytest.raises(AlreadyExists, match="-o"):
        compress_local(trained.model, trained.data, recipe, trained.model)


def test_the_same_seed_gives_the_same_build_and_another_does_not(trained: Trained, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml("name: mine\nsteps: [low_rank: {ratio: 0.4}, distill: {epochs: 1}]")
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        np.random.seed(number)
        torch.manual_seed(number)
        facts = compress_local(trained.model, trained.data, recipe, tmp_path / str(number), seed=seed)
        digests.append(facts.builds[0].sha256)
    assert digests[0] == digests[1] != digests[2]


class _Detector(nn.Module):
    """One box of one of two classes in each picture of 8 x 8: where it is bright, by how bright it is."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 48)
        self.boxes = nn.Linear(48, 4)
        self.scores = nn.Linear(48, 2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = functional.relu(self.hidden(image.flatten(1)))
        return self.boxes(x).unsqueeze(1), self.scores(x).sigmoid().unsqueeze(1)


def test_a_detector_is_pruned_recovered_and_judged_by_its_boxes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    corner, size = random.integers(0, 3, (480, 2)), random.integers(3, 6, (480, 2))
    classes = random.integers(0, 2, 480)
    images = np.zeros((480, 8, 8), np.float32)
    for image, (x, y), (w, h), which in zip(images, corner, size, classes, strict=True):
        image[y : y + h, x : x + w] = 1.0 - 0.5 * which
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    targets = np.full((480, 2, 5), -1, np.float32)
    targets[:, 0, :4], targets[:, 0, 4] = boxes, classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _Detector()
        x, wanted, kind = torch.from_numpy(images), torch.from_numpy(boxes), torch.from_numpy(classes)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(300):
            found, scores = model(x)
            loss = functional.mse_loss(found[:, 0], wanted) + functional.binary_cross_entropy(
                scores[:, 0], functional.one_hot(kind, 2).float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    export(model.eval(), (x[:2],), tmp_path / "detector.pt2")
    np.savez(tmp_path / "d.npz", image=images, targets=targets)
    recipe = Recipe.from_yaml(
        "name: d\nsteps: [activation_pruning: {ratio: 0.5}, distill: {epochs: 20, learning_rate: 0.003}, quantize: {}]"
    )
    facts = compress_local(tmp_path / "detector.pt2", tmp_path / "d.npz", recipe, tmp_path / "out", metric="map@xyxy")
    before, cut, recovered, _ = [step.metric.value for step in facts.lineage if step.metric is not None]
    assert before > 60 and cut < before - 5 and recovered > cut + 5
