"""Building a TensorRT engine through torch_tensorrt, in a process of its own (see building.py)."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fleetfit.core.children import limit_self
from fleetfit.core.errors import FleetfitError, InvalidModel
from fleetfit.runtimes import torch_tensorrt_library as library
from fleetfit.runtimes.aten import Network, placeholder, read
from fleetfit.runtimes.aten_module import rebuild
from fleetfit.runtimes.building import Shapes, Tell, engine_apart, serve, workspace_bytes
from fleetfit.runtimes.cuda import find_cuda
from fleetfit.runtimes.refusal import lines, raise_memory
from fleetfit.runtimes.tensorrt_builder import fixed_shape
from fleetfit.runtimes.tensorrt_library import import_tensorrt

_LOADED: Final = 0.1


def build_engine(build: bytes, shapes: Shapes, *, limit_s: float, memory_bytes: int | None, progress: Tell) -> bytes:
    """An engine for inputs of exactly `shapes`, by `placeholder`; without, of one sample. Raises as `build_apart`."""
    module = "fleetfit.runtimes.torch_tensorrt_builder"
    return engine_apart(
        module, build, shapes, title="torch_tensorrt", limit_s=limit_s, memory_bytes=memory_bytes, progress=progress
    )


def options_of(convert: Callable[..., Any]) -> Mapping[str, Any]:
    """What makes a network hold to the build's own number formats, in the words of this release.

    Up to 2.12 it has to be asked for; from 2.13 on there is nothing else (torch_tensorrt/dynamo/_compiler.py of either).
    """
    explicit = "use_explicit_typing"
    return {explicit: True} if explicit in inspect.signature(convert).parameters else {}


def make_engine(network: Network, shapes: Shapes, workspace: int, timing_cache: Path, tell: Tell) -> bytes:
    """The engine, in this process. Raises InvalidModel.

    `timing_cache` is where no file is: with one, a second engine of one network would be the first one again.
    """
    import torch
    import torch_tensorrt

    fixed = []
    for at, port in enumerate(network.inputs):
        asked = {port.name: shapes[placeholder(at)]} if placeholder(at) in shapes else {}
        fixed.append(fixed_shape(port.name, port.shape, asked))
    with _failures() as said:
        try:
            module = rebuild(network, library.DEVICE)
            # Zeros are as good as anything: nothing depends on values.
            feeds = [
                torch.zeros(shape, dtype=getattr(torch, port.dtype), device=library.DEVICE)
                for port, shape in zip(network.inputs, fixed, strict=True)
            ]
            # Once more, by the torch that is here and for exactly these sizes.
            program = torch.export.export(module, tuple(feeds), strict=False)
            tell(_LOADED)
            convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
            plan = convert(
                program,
                inputs=feeds,
                disable_tf32=True,
                workspace_size=workspace,
                timing_cache_path=str(timing_cache),
                **options_of(convert),
            )
        except (FleetfitError, MemoryError):
            raise
        except Exception as error:  # PyTorch's and converters' have no common root
            # 2.8 logs what went wrong, and stumbles over it afterwards.
            first = said[0] if said else error
            raise_memory(first)
            raise InvalidModel(
                f"torch_tensorrt {torch_tensorrt.__version__} makes no engine of the build: {lines(first)[0]}; use another runtime"
            ) from error
    return bytes(plan)


@contextlib.contextmanager
def _failures() -> Iterator[Sequence[Exception]]:
    """The exceptions that torch_tensorrt logs meanwhile, first to last."""
    found: list[Exception] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and isinstance(record.exc_info[1], Exception):
                found.append(record.exc_info[1])

    logger, handler = logging.getLogger("torch_tensorrt"), Kept()
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def work(folder: Path, request: Mapping[str, Any], tell: Tell) -> None:
    """Build what the folder asks for."""
    # TensorRT's module of the system first, where torch_tensorrt would not look.
    import_tensorrt()
    network = read((folder / "build").read_bytes())
    # Before PyTorch takes its part of the GPU's memory, as for the engines of TensorRT itself.
    workspace = workspace_bytes(find_cuda().free_memory(), request["memory_bytes"])
    plan = make_engine(network, request["shapes"], workspace, folder / "timing", tell)
    (folder / "engine").write_bytes(plan)


if __name__ == "__main__":
    limit_self()
    sys.exit(serve(Path(sys.argv[1]), work))
