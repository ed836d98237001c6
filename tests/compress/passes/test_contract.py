"""What every pass promises, tried on every registered pass: the docstring of `Pass`, as tests."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fleetfit.client.export import export
from fleetfit.compress.exporter import export_onnx, prove_equal
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.base import Arrays, Needs, Pass, PassContext, PassReport
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.registry import passes
from fleetfit.core.errors import FleetfitError, InvalidRecipe


class Regression(nn.Module):
    """Two inputs of two dtypes, 1-d signals, two outputs; one of the sizes is no multiple of anything."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = nn.Sequential(
            nn.Conv1d(2, 7, 3, padding=1), nn.BatchNorm1d(7), nn.ReLU(), nn.AdaptiveAvgPool1d(4)
        )
        self.kind = nn.Embedding(5, 6)
        self.join = nn.Linear(28 + 6, 19)
        self.out, self.spread = nn.Linear(19, 1), nn.Linear(19, 2)

    def forward(self, signal: torch.Tensor, kind: torch.Tensor) -> dict[str, torch.Tensor]:
        joined = torch.cat([self.signal(signal).flatten(1), self.kind(kind)], 1)
        hidden = torch.relu(self.join(joined))
        return {"value": self.out(hidden), "spread": self.spread(hidden)}


def _signals(count: int, seed: int) -> Arrays:
    numbers = np.random.default_rng(seed)
    signal = numbers.normal(size=(count, 2, 12)).astype(np.float32)
    kind = numbers.integers(0, 5, count)
    targets = (signal.mean((1, 2)) + 0.1 * kind)[:, None].astype(np.float32)
    return Arrays({"signal": signal, "kind": kind}, targets)


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        sample = {name: torch.from_numpy(values) for name, values in _signals(3, 0).inputs.items()}
        return export(Regression().eval(), sample, tmp_path_factory.mktemp("regression") / "m.pt2")


_loaded: dict[Path, LayeredModel] = {}


def _load(path: Path) -> LayeredModel:
    """A copy: loading takes longer than most passes."""
    if path not in _loaded:
        _loaded[path] = load_pt2(path)
    return _loaded[path].clone()


class PassContract:
    """Subclass it, name the pass and parameters of it that change both models below; the tests come with it."""

    name: ClassVar[str]
    parameters: ClassVar[dict[str, Any]]
    changes_layers: ClassVar[bool] = True

    @pytest.fixture(params=["pictures", "regression", "one batch size"])
    def case(
        self, request: pytest.FixtureRequest, trained: Any, regression: Path
    ) -> Callable[[], tuple[LayeredModel, PassContext]]:
        """A fresh model and the context for it."""

        def make() -> tuple[LayeredModel, PassContext]:
            if request.param == "regression":
                model, metric, task = _load(regression), "mean_absolute_error", "regression"
                train, validation = _signals(200, 1), _signals(50, 2)
            else:
                model, metric, task = _load(trained.model), "accuracy", "classification"
                train, validation = trained.train_arrays, trained.validation_arrays
            if request.param == "one batch size":
                model.dynamic_batch = False
            context = PassContext(train, validation, model.clone(), metric, task, 7, lambda part, activity: None)
            # As after an earlier pass: not quite what its teacher is, so that there is something to recover.
            noise = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for weight in model.module.parameters():
                    weight += 0.2 * torch.randn(weight.shape, generator=noise)
            return model, context

        return make

    @property
    def step(self) -> Pass:
        return passes()[self.name].model_validate(self.parameters)

    def test_parameters_are_checked_and_frozen(self) -> None:
        with pytest.raises(ValidationError):
            passes()[self.name].model_validate({**self.parameters, "no_such_parameter": 1})
        with pytest.raises(ValidationError):
            self.step.samples = 3  # type: ignore[attr-defined]
        assert passes()[self.name].model_validate(self.step.parameters()) == self.step

    def test_it_stands_in_a_recipe(self) -> None:
        recipe = Recipe(name="one", steps=(self.step,))
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        assert type(self.step).__doc__ and self.step.version >= 1

    def test_what_goes_in_and_out_stays_and_the_model_can_be_built(
        self, case: Callable[[], tuple[LayeredModel, PassContext]], tmp_path: Path
    ) -> None:
        model, context = case()
        before = {name: (value.shape, value.dtype) for name, value in model.call(model.sample_inputs).items()}
        parameters = model.parameters_count()
        weights = _weights(model)
        report = self.step.apply(model, context)
        assert isinstance(report, PassReport) and report.notes and all(isinstance(note, str) for note in report.notes)
        model.module.eval()
        outputs = model.call(model.sample_inputs)
        assert {name: (value.shape, value.dtype) for name, value in outputs.items()} == before
        assert all(bool(torch.isfinite(value).all()) for value in outputs.values())
        assert model.parameters_count() <= parameters
        assert (not _same(_weights(model), weights)) == self.changes_layers
        assert (report.training_steps > 0) == (Needs.TRAINING in self.step.wants())
        prove_equal(model, export_onnx(model), context.validation)
        model.save_pt2(tmp_path / "again.pt2")
        again = load_pt2(tmp_path / "again.pt2")
        for name, value in again.call(model.sample_inputs).items():
            torch.testing.assert_close(value, outputs[name], rtol=1e-4, atol=1e-5)

    def test_it_is_deterministic_and_leaves_all_else_alone(
        self, case: Callable[[], tuple[LayeredModel, PassContext]]
    ) -> None:
        results = []
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            model, context = case()
            assert context.teacher is not None and context.train is not None
            states = (random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state())  # type: ignore[index]
            teacher = _weights(context.teacher)
            inputs = {name: values.copy() for name, values in context.train.inputs.items()}
            self.step.apply(model, context)
            results.append(_weights(model))
            assert random.getstate() == states[0]
            assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
            assert torch.equal(torch.random.get_rng_state(), states[2])
            assert _same(_weights(context.teacher), teacher)
            assert all(np.array_equal(values, inputs[name]) for name, values in context.train.inputs.items())
        assert _same(*results)

    def test_progress_rises_and_may_stop_it(self, case: Callable[[], tuple[LayeredModel, PassContext]]) -> None:
        class Stop(Exception):
            pass

        model, context = case()
        said: list[float] = []
        self.step.apply(model, replace(context, report=lambda part, activity: said.append(part)))
        assert said == sorted(said) and all(0 <= part <= 1 for part in said)

        def stop(part: float, activity: str) -> None:
            raise Stop

        if said:
            model, context = case()
            with pytest.raises(Stop):
                self.step.apply(model, replace(context, report=stop))

    def test_missing_data_are_named(self, case: Callable[[], tuple[LayeredModel, PassContext]]) -> None:
        model, context = case()
        bare = replace(context, train=None, validation=None)
        if not {Needs.DATA, Needs.TRAINING} & self.step.wants():
            assert self.step.apply(model, bare).notes
            return
        with pytest.raises(InvalidRecipe, match="--data"):
            self.step.apply(model, bare)
            self.step.build(export_onnx(model), bare)

    def test_it_works_without_targets(self, case: Callable[[], tuple[LayeredModel, PassContext]]) -> None:
        model, context = case()
        assert context.train is not None and context.validation is not None
        bare = replace(
            context,
            train=replace(context.train, targets=None),
            validation=replace(context.validation, targets=None),
            metric="",
            task="",
        )
        self.step.apply(model, bare)
        assert all(bool(torch.isfinite(value).all()) for value in _weights(model).values())


def _weights(model: LayeredModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.module.state_dict().items()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class TestActivationPruning(PassContract):
    name = "activation_pruning"
    parameters: ClassVar[dict[str, Any]] = {"ratio": 0.5, "samples": 64}


class TestActivationPruningByZeros(PassContract):
    name = "activation_pruning"
    parameters: ClassVar[dict[str, Any]] = {"criterion": "zeros", "ratio": 0.5, "samples": 64}


class TestTaylorPruning(PassContract):
    name = "taylor_pruning"
    parameters: ClassVar[dict[str, Any]] = {"ratio": 0.5, "samples": 64, "scope": "global", "round_to": 2}


class TestActivationPruningByThreshold(PassContract):
    name = "activation_pruning"
    parameters: ClassVar[dict[str, Any]] = {"threshold": 0.25, "samples": 64, "round_to": 2}


class TestLowRank(PassContract):
    name = "low_rank"
    parameters: ClassVar[dict[str, Any]] = {"ratio": 0.2, "samples": 64}


class TestLowRankConvolutions(PassContract):
    name = "low_rank"
    parameters: ClassVar[dict[str, Any]] = {"energy": 0.6, "layers": "all", "method": "best", "samples": 64}


class TestLowRankForABudget(PassContract):
    name = "low_rank"
    parameters: ClassVar[dict[str, Any]] = {"fewer_parameters": 0.3, "layers": "all", "samples": 64}


class TestRedundancyPruning(PassContract):
    name = "redundancy_pruning"
    parameters: ClassVar[dict[str, Any]] = {"ratio": 0.5, "samples": 64}


class TestReestimateNorms(PassContract):
    name = "reestimate_norms"
    parameters: ClassVar[dict[str, Any]] = {"samples": 64}


class TestReestimateNormsMeasured(PassContract):
    name = "reestimate_norms"
    parameters: ClassVar[dict[str, Any]] = {"statistics": "measured", "samples": 64}


class TestZeroPruning(PassContract):
    name = "zero_pruning"
    parameters: ClassVar[dict[str, Any]] = {"ratio": 0.5}


class TestZeroPruningToABudget(PassContract):
    name = "zero_pruning"
    parameters: ClassVar[dict[str, Any]] = {"scope": "global", "budget": {"macs": 0.3, "scan": True}}


class TestZeroPruningOfSingleWeights(PassContract):
    name = "zero_pruning"
    parameters: ClassVar[dict[str, Any]] = {"ratio": 0.5, "pattern": "unstructured", "scope": "global"}


class TestZeroPruningByPattern(PassContract):
    name = "zero_pruning"
    parameters: ClassVar[dict[str, Any]] = {"pattern": "1:2"}


class TestDistill(PassContract):
    name = "distill"
    parameters: ClassVar[dict[str, Any]] = {"epochs": 1, "batch": 16, "samples": 96, "learning_rate": 0.003}


class TestDistillWithFeatures(PassContract):
    name = "distill"
    parameters: ClassVar[dict[str, Any]] = {
        "steps": 6,
        "batch": 16,
        "features": "auto",
        "ema": 0.9,
        "clip": 1.0,
        "learning_rate": 0.003,
    }


class TestQuantize(PassContract):
    name = "quantize"
    parameters: ClassVar[dict[str, Any]] = {"mode": "static", "samples": 32}
    changes_layers = False


class TestQuantizeAwareTraining(PassContract):
    name = "quantize_aware_training"
    parameters: ClassVar[dict[str, Any]] = {"epochs": 1, "batch": 16, "samples": 96, "learning_rate": 0.003}


def test_every_registered_pass_is_held_to_the_contract() -> None:
    assert {kind.name for kind in PassContract.__subclasses__()} == set(passes())


def test_declarations_import_nothing_heavy() -> None:
    code = (
        "import sys; from fleetfit.compress.registry import passes; passes();"
        "print([m for m in ('torch', 'numpy', 'onnx', 'onnxruntime', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_plug_in_that_cannot_be_imported_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from fleetfit.compress import registry

    def broken(*, group: str) -> list[EntryPoint]:
        return [EntryPoint("mine", "no_such_module:Mine", group)]

    def not_a_pass(*, group: str) -> list[EntryPoint]:
        return [EntryPoint("mine", "pathlib:Path", group)]

    def twice(*, group: str) -> list[EntryPoint]:
        return [
            EntryPoint("mine", "fleetfit.compress.passes.quantize:Quantize", group),
            EntryPoint("mine", "fleetfit.compress.passes.distill:Distill", group),
        ]

    for entries, words in (
        (broken, "no_such_module"),
        (not_a_pass, "is not a Pass"),
        (twice, "two installed packages"),
    ):
        monkeypatch.setattr(registry, "entry_points", entries)
        registry.passes.cache_clear()
        with pytest.raises(FleetfitError, match=words):
            registry.passes()
    monkeypatch.undo()
    registry.passes.cache_clear()
    assert "quantize" in registry.passes()
