"""Where training passes compute: on the processor, or on a CUDA device with the results back on the processor afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.utils._pytree import tree_map_only

from fleetfit.compress.cuda import driver_version
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.tasks import CudaDevice
from fleetfit.core.errors import UnsupportedHere

CPU: Final = torch.device("cpu")


def choose_device(asked: str) -> torch.device:
    """The device for `auto` (CUDA where PyTorch has it), `cpu` or `cuda`.

    Raises UnsupportedHere where CUDA is asked for and PyTorch has none. Products on CUDA are made reproducible, which has to
    happen before the first of them.
    """
    there = asked != "cpu" and torch.cuda.is_available()
    if asked == "cuda" and not there:
        built = "finds no such device here" if torch.version.cuda else "was built without it"
        raise UnsupportedHere(
            f"--compute cuda needs a CUDA device, and PyTorch {torch.__version__} {built}; install a build of PyTorch for "
            "CUDA and its driver, or give --compute cpu",
            field="compute",
        )
    if not there:
        return CPU
    # See torch.use_deterministic_algorithms: without it cuBLAS may sum in another order each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda", torch.cuda.current_device())


def described(device: torch.device) -> str:
    """For lineages: `cpu`, or the CUDA device with all versions that its results depend on."""
    return device_facts(device).described() if device.type == "cuda" else device.type


def device_facts(device: torch.device) -> CudaDevice:
    """What a CUDA device is, and the versions of all that computes on it."""
    found = torch.cuda.get_device_properties(device)
    return CudaDevice(
        name=found.name,
        capability=f"{found.major}.{found.minor}",
        cuda=str(torch.version.cuda),
        cudnn=str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        driver=driver_version(),
        memory_bytes=found.total_memory,
    )


def generators(device: torch.device) -> list[torch.device]:
    """The devices besides the processor whose random state is to be kept, as `torch.random.fork_rng` takes them."""
    return [device] if device.type == "cuda" else []


@contextmanager
def placed(model: LayeredModel, device: torch.device) -> Iterator[None]:
    """Inside, the model is on `device`; afterwards it is where it was."""
    before = model.device
    move(model, device)
    try:
        yield
    finally:
        move(model, before)


def move(model: LayeredModel, device: torch.device) -> None:
    """Move weights, buffers and sample inputs in place, and let the graph make its constants there too."""
    if model.device == device:
        return
    module = model.module
    module.to(device)
    for node in module.graph.nodes:
        # Exported graphs name the device of every tensor that they make.
        node.args = _renamed(node.args, device)
        node.kwargs = _renamed(node.kwargs, device)
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(module.get_submodule(owner), name)
            # A plain attribute: parameters and buffers were moved above.
            if isinstance(value, torch.Tensor) and value.device != device:
                setattr(module.get_submodule(owner), name, value.to(device))
    module.recompile()
    for name, sample in model.sample_inputs.items():
        model.sample_inputs[name] = sample.to(device)


def _renamed(given: Any, device: torch.device) -> Any:
    return tree_map_only(torch.device, lambda _: device, given)
