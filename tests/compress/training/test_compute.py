"""Where training computes: what may be asked for, and that everything follows the model's device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from fleetfit.compress.compute import choose_device, described
from fleetfit.compress.local import compress_local
from fleetfit.compress.recipe import Recipe
from fleetfit.core.errors import UnsupportedHere

from ..conftest import Trained

RECIPE = Recipe.from_yaml("{name: a, steps: [activation_pruning: {ratio: 0.5}, distill: {epochs: 1}]}")


def test_all_that_training_makes_is_where_the_model_is() -> None:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch cannot pretend a device")
    child = [sys.executable, str(Path(__file__).with_name("elsewhere.py"))]
    ended = subprocess.run(child, capture_output=True, text=True, timeout=100)  # noqa: S603
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_cuda_is_taken_only_where_there_is_some(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == torch.device("cpu")
    with pytest.raises(UnsupportedHere, match="--compute cuda needs a CUDA device, and PyTorch .* give --compute cpu"):
        compress_local(trained.model, trained.data, RECIPE, tmp_path / "out", compute="cuda")
    facts = compress_local(trained.model, trained.data, RECIPE, tmp_path / "out", compute="auto")
    assert facts.environment["compute"] == "cpu"
    assert not any("trained on" in note for note in facts.lineage[-1].notes)


def test_cpu_is_taken_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA device here")
def test_cuda_trains_the_same_twice(trained: Trained, tmp_path: Path) -> None:
    made = [compress_local(trained.model, trained.data, RECIPE, tmp_path / n, compute="cuda") for n in ("a", "b")]
    assert made[0].builds[0].sha256 == made[1].builds[0].sha256
    assert made[0].environment["compute"] == described(choose_device("cuda"))
    before, after = made[0].lineage[0].metric, made[0].lineage[-1].metric
    assert before is not None and after is not None and after.value > before.value - 5
