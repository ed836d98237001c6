"""Whether CUDA is there: what is looked for, what is tried, and what is said where it does not work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fleetfit.compress import cuda
from fleetfit.compress.cuda import check_training, device_files, driver_version, find_device
from fleetfit.compress.recipe import Recipe
from fleetfit.compress.run import _failure
from fleetfit.compress.tasks import (
    WAITING_FOR_HOST,
    Compress,
    CudaDevice,
    FindDevice,
    IntakeModel,
    Task,
    TaskProgress,
)
from fleetfit.core.errors import UnsupportedHere

from .conftest import Ended, Trained

HERE = Path("/dev/nvidiactl").exists()
needs_none = pytest.mark.skipif(HERE, reason="there is an NVIDIA driver here")
RECIPE = Recipe.from_yaml("{name: a, steps: [activation_pruning: {ratio: 0.5}, distill: {epochs: 1}]}")
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.77  Release Build  (a@)  Sun Feb  9 11:08:26 UTC 2025\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version:  gcc 13.3.0\n"
TERSE = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64 595.71.05"


@pytest.mark.parametrize(
    ("text", "version"),
    [(OPEN, "565.77"), (CLOSED, "550.54.14"), (TERSE, "595.71.05"), ("", "unknown"), ("1.2.3", "unknown")],
)
def test_the_version_of_a_driver_is_read(text: str, version: str) -> None:
    assert driver_version(text) == version


def test_the_files_of_displays_and_of_others_are_left_out(tmp_path: Path) -> None:
    needed = ["nvidia-caps", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia11", "nvidiactl"]
    for name in (*needed, "nvidia-modeset", "nvidia-vgpu1", "nvidiax", "null", "dri", "kfd", "xnvidia0", "nvidia0.old"):
        (tmp_path / name).touch()
    assert [path.name for path in device_files(tmp_path)] == needed


def _pretend(names: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names:
        (folder / name).touch()
    monkeypatch.setattr(cuda, "_FOLDER", folder)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "no /dev/nvidiactl.*`nvidia-smi` once as root"),
        (("nvidia-uvm", "nvidia0"), "no /dev/nvidiactl"),
        (("nvidiactl", "nvidia0"), "no /dev/nvidia-uvm.*`nvidia-modprobe -u -c 0`"),
    ],
)
def test_what_is_missing_is_named_before_anything_heavy_is_done(
    names: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(names, tmp_path, monkeypatch)
    with pytest.raises(UnsupportedHere, match=says):
        find_device()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch can compute on CUDA")
def test_a_pytorch_without_cuda_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(("nvidiactl", "nvidia-uvm"), tmp_path, monkeypatch)
    with pytest.raises(
        UnsupportedHere, match=rf"PyTorch {torch.__version__[:3]}.*not compiled with CUDA.*install a build"
    ):
        find_device()


@pytest.fixture
def restored() -> object:
    strict = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(strict)


@pytest.mark.usefixtures("restored")
def test_a_device_counts_when_it_trains() -> None:
    check_training(torch.device("cpu"))
    # There are no numbers on this one.
    with pytest.raises(UnsupportedHere, match="finds meta and cannot train on it"):
        check_training(torch.device("meta"))


@pytest.mark.usefixtures("restored")
def test_a_device_that_trains_otherwise_each_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = iter([torch.zeros(3), torch.ones(3), torch.tensor([torch.nan]), torch.tensor([torch.nan])])
    monkeypatch.setattr(cuda, "_trained", lambda device: next(weights))
    for _ in range(2):
        with pytest.raises(UnsupportedHere, match="other weights the second time, or none that are finite"):
            check_training(torch.device("cpu"))


def test_only_what_trains_is_let_through_to_cuda() -> None:
    works = [
        IntakeModel(format="pt2"),
        Compress(format="pt2", recipe=""),
        Compress(format="pt2", recipe="", compute="cuda"),
        FindDevice(),
    ]
    assert [Task(task_id="t", work=work).wants_cuda() for work in works] == [False, False, True, True]


def test_memory_of_the_device_is_not_memory_of_the_host() -> None:
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
    )
    told = _failure(error)
    assert (
        told.code == "RESOURCE_EXHAUSTED" and "CUDA device has free" in told.message and "--compute cpu" in told.message
    )
    assert "raise the server's limit" in _failure(MemoryError()).message


def test_everything_that_results_depend_on_is_in_the_description() -> None:
    device = CudaDevice(name="GPU", capability="9.0", cuda="12.8", cudnn="91002", driver="570.86.15", memory_bytes=1)
    assert device.model_copy(update={"memory_bytes": 2}).described() == device.described()
    for name in ("name", "capability", "cuda", "cudnn", "driver"):
        assert device.model_copy(update={name: "another"}).described() != device.described()


@needs_none
def test_a_machine_without_a_driver_is_a_result(run_task: Callable[..., Ended]) -> None:
    ended = run_task(FindDevice(), {})
    assert ended.outcome.kind == "ok" and ended.result is not None and ended.result.error is not None, ended.outcome
    assert ended.result.error.code == "UNSUPPORTED_HERE" and "/dev/nvidiactl" in ended.result.error.message
    assert ended.result.device is None and len(ended.result.held) == 1
    # What has not begun cannot take too long.
    progress = TaskProgress.model_validate_json((ended.folder / "progress.json").read_text())
    assert progress.activity != WAITING_FOR_HOST


@needs_none
def test_a_device_that_is_gone_is_a_result(trained: Trained, run_task: Callable[..., Ended]) -> None:
    work = Compress(format="pt2", recipe=RECIPE.to_yaml(), task="classification", metric="accuracy", compute="cuda")
    files = {"model": trained.model, "train.npz": trained.train, "validation.npz": trained.validation}
    result = run_task(work, files).result
    assert result is not None and result.error is not None and result.error.code == "UNSUPPORTED_HERE"


@pytest.mark.gpu
@pytest.mark.skipif(not HERE, reason="there is no NVIDIA driver here")
def test_a_confined_child_trains_on_cuda_the_same_twice(trained: Trained, run_task: Callable[..., Ended]) -> None:
    found = run_task(FindDevice(), {})
    assert found.result is not None and found.result.device is not None, (found.outcome, found.result)
    assert {"landlock", "seccomp", "rlimits"} <= set(found.result.confinement)
    work = Compress(format="pt2", recipe=RECIPE.to_yaml(), task="classification", metric="accuracy", compute="cuda")
    files = {"model": trained.model, "train.npz": trained.train, "validation.npz": trained.validation}
    made = [run_task(work, files).result for _ in range(2)]
    facts = [one.compress for one in made if one is not None and one.compress is not None]
    assert len(facts) == 2, made
    assert facts[0].builds == facts[1].builds and facts[0].trainable == facts[1].trainable
    assert facts[0].environment["compute"] == found.result.device.described()
    assert any(found.result.device.described() in note for note in facts[0].lineage[-1].notes)
