"""TensorRT's Python module: where it is, what its versions have, and the names of its numbers.

The calls are those that TensorRT 8.5 to 11 share; tests/runtimes/tensorrt_signatures.json has their signatures, read from
NVIDIA's own wheels.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fleetfit.runtimes.refusal import lines

OLDEST: Final = (8, 5)
"""The first with tensors by name (`set_tensor_address`, `execute_async_v3`)."""
DTYPES: Final[Mapping[str, str]] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
"""NumPy's names. TensorRT's own `nptype` fails on a NumPy that has dropped `numpy.bool` while 8.5 still asks for it."""

_LIBRARIES: Final = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so")


def system_folders() -> list[Path]:
    """Where Debian packages put Python modules: out of sight of an agent's own environment."""
    minor = f"python3.{sys.version_info.minor}"
    return [Path("/usr/lib") / name / "dist-packages" for name in (minor, "python3")]


def import_tensorrt(folders: Sequence[Path] | None = None) -> Any:
    """The module `tensorrt`: of this environment, else the one that JetPack has installed for the system's Python.

    Of a system's folder nothing else is made visible: it has a NumPy of its own. Raises ImportError.
    """
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        for folder in system_folders() if folders is None else folders:
            init = folder / "tensorrt" / "__init__.py"
            if init.exists():
                return _load(init)
        raise ImportError(lines(error)[0]) from error


def _load(init: Path) -> Any:
    spec = importlib.util.spec_from_file_location("tensorrt", init, submodule_search_locations=[str(init.parent)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{init} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Its parts import each other by name.
    sys.modules["tensorrt"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["tensorrt"]
        raise
    return module


def version_of(text: str) -> tuple[int, int]:
    """Major and minor; (0, 0) for what has none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def creation_flags(members: Sequence[str]) -> Sequence[str]:
    """Which of the flags that this version knows make a network hold to the build's own number formats.

    Up to 9 there is no such flag, and the number of dimensions has to be asked for; from 11 on neither is asked for any more.
    """
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if name in members:
            return (name,)
    return ()


def allowed_formats(flags: Sequence[str], layer_types: Sequence[str], dtypes: Sequence[str]) -> Sequence[str]:
    """Which builder flags allow a network of 8.x, whose types are not its own, the formats that stand in the build.

    `flags` are those of `creation_flags`. Without them TensorRT would compute a quantized build in float32. That it may
    then take these formats for other layers too, it does not let us forbid.
    """
    if "STRONGLY_TYPED" in flags:
        return ()
    wanted = {"INT8": "QUANTIZE" in layer_types, "FP16": "HALF" in dtypes}
    return tuple(name for name, there in wanted.items() if there)


def library_version() -> str:
    """The version of TensorRT's own library, as in `10.3.0`; empty where there is none. For those who use it without its module.

    It is one number: thousands and hundreds up to 9, ten thousands and hundreds from 10 on (NvInferVersion.h, NV_TENSORRT_VERSION).
    """
    for name in _LIBRARIES:
        try:
            number = int(ctypes.CDLL(name).getInferLibVersion())
        except (OSError, AttributeError):
            continue
        unit = 10_000 if number >= 100_000 else 1_000
        return f"{number // unit}.{number % unit // 100}.{number % 100}"
    return ""
