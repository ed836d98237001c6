"""What CUDA needs of this machine, and whether it really trains here. Imports no torch at its head: `confine` reads it too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfit.compress.tasks import CudaDevice
from fleetfit.core.errors import UnsupportedHere

if TYPE_CHECKING:
    import torch

# The names are those of NVIDIA's container library (NVIDIA/libnvidia-container, src/nvc_internal.h). Not its nvidia-modeset, which
# is for displays. Driver 570 and later give up with error 304 where nvidia-uvm-tools cannot be opened (nolabs-ai/nono, pull request
# 652). nvidia-caps has the parts of GPUs that are split (MIG).
_DEVICES = re.compile(r"nvidia(ctl|-uvm|-uvm-tools|-caps|\d+)")
_FOLDER = Path("/dev")
_VERSION = Path("/proc/driver/nvidia/version")


def device_files(folder: Path = _FOLDER) -> list[Path]:
    """The device files, and the folder of them, through which CUDA reaches discrete NVIDIA GPUs."""
    return sorted(path for path in folder.iterdir() if _DEVICES.fullmatch(path.name))


def find_device() -> CudaDevice:
    """The CUDA device that training takes, after it has trained a little on it, the same twice.

    Raises UnsupportedHere with the reason and what to do. To be called where training will run: what a confined process may not
    reach is not found.
    """
    _check_files()
    import torch

    from fleetfit.compress.compute import choose_device, device_facts

    try:
        # Says why, where `is_available` only says no.
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedHere(
            f"PyTorch {torch.__version__} cannot use the NVIDIA driver {driver_version()} ({_first_line(error)}); install a "
            "build of PyTorch for a CUDA version that this driver has"
        ) from error
    device = choose_device("cuda")
    check_training(device)
    return device_facts(device)


def driver_version(text: str | None = None) -> str:
    """The driver's version in what `/proc/driver/nvidia/version` says, by default this machine's; `unknown` without one."""
    if text is None:
        text = _VERSION.read_text() if _VERSION.exists() else ""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)(?:\s|$)", text, re.MULTILINE)
    return found[1] if found else "unknown"


def check_training(device: torch.device) -> None:
    """Train a small network twice. Raises UnsupportedHere where that fails, or the results differ."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = _trained(device), _trained(device)
    except RuntimeError as error:
        raise UnsupportedHere(
            f"PyTorch {torch.__version__} finds {device} and cannot train on it ({_first_line(error)}); look whether another "
            "process fills its memory, and whether PyTorch was built for this GPU"
        ) from error
    if not torch.equal(first, second) or not bool(torch.isfinite(first).all()):
        raise UnsupportedHere(
            f"training on {device} gave other weights the second time, or none that are finite; update the driver and PyTorch, "
            "and look for memory errors with `nvidia-smi -q -d ECC`"
        )


def _check_files() -> None:
    # A confined process may look whether they are there, not list the folder.
    if not (_FOLDER / "nvidiactl").exists():
        raise UnsupportedHere(
            "there is no /dev/nvidiactl, so no driver of a discrete NVIDIA GPU is loaded; install it, or load it by running "
            "`nvidia-smi` once as root"
        )
    if not (_FOLDER / "nvidia-uvm").exists():
        # CUDA makes the file by running that program itself, which a confined process cannot.
        raise UnsupportedHere("there is no /dev/nvidia-uvm, which CUDA needs; run `nvidia-modprobe -u -c 0` once")


def _trained(device: torch.device) -> torch.Tensor:
    """All weights after three steps of a network that needs convolutions, norms and products both ways."""
    import torch
    from torch import nn

    from fleetfit.compress.compute import generators

    with torch.random.fork_rng(devices=generators(device)):
        torch.manual_seed(0)
        convolution = nn.Conv2d(3, 16, 3, padding=1)
        net = nn.Sequential(convolution, nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 4)).to(device)
        inputs, labels = torch.randn(32, 3, 8, 8).to(device), torch.arange(32).remainder(4).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return torch.cat([weight.detach().flatten().cpu() for weight in net.parameters()])


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
