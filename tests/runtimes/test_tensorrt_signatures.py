"""The calls that the TensorRT adapter makes, held to the signatures that NVIDIA's own modules have (see signatures.py)."""

from __future__ import annotations

import ast
import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetfit.runtimes.cuda import SIGNATURES, Cuda, find_cuda
from fleetfit.runtimes.tensorrt import TensorRt
from fleetfit.runtimes.tensorrt_library import DTYPES, import_tensorrt

from .signatures import ENUMS, KEPT, METHODS, PROPERTIES, fits, read

VERSIONS: list[dict[str, Any]] = json.loads(KEPT.read_text())
NAMES = {name for names in METHODS.values() for name in names} - {"__init__"}
CLASSES = {"Builder", "OnnxParser", "Runtime", "Logger", "ILogger", "IProgressMonitor", "IProfiler"}
# What is not TensorRT's in the functions that call it.
OURS = {
    *("append", "errors", "items", "_phases", "start", "step", "finish", "inputs", "outputs", "context", "addressed"),
    *(
        "_engine",
        "_runtime",
        "_logger",
        "_shapes",
        "batch",
        "_port",
        "_built_for",
        "_output",
        "_has_rows",
        "_batched",
        "_varies",
        "trt",
        "name",
    ),
    *("lower", "shape", "to_device", "to_host", "synchronize", "_cuda", "_stream", "_device", "_host", "_sizes", "get"),
    *("call", "dtype", "values", "ndim", "takes", "_views", "_allocate", "close"),
}


def functions() -> Iterator[ast.AST]:
    """The parts of the adapter that call TensorRT."""
    for module, wanted in {
        "tensorrt_builder.py": {"make_engine", "_logger", "_monitor"},
        "tensorrt_engine.py": {"_Engine", "_device_memory", "call"},
        "tensorrt_profile.py": {"profile_context", "_profiler"},
    }.items():
        tree = ast.parse(Path("fleetfit/runtimes", module).read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in wanted:
                yield node


def calls() -> list[tuple[str, int, list[str]]]:
    """Name (of a class: what it is), number of arguments and keywords of each call that is TensorRT's."""
    found = []
    for part in functions():
        for node in ast.walk(part):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            given = len(node.args), [keyword.arg or "**" for keyword in node.keywords]
            if node.func.attr in NAMES:
                found.append((node.func.attr, *given))
            elif node.func.attr in CLASSES:
                found.append((f"{node.func.attr}.__init__", *given))
            elif node.func.attr == "__init__" and isinstance(node.func.value, ast.Attribute):
                # As `trt.ILogger.__init__(self)`.
                found.append((f"{node.func.value.attr}.__init__", given[0] - 1, given[1]))
    return found


def test_the_list_has_an_old_a_usual_and_a_new_version_from_nvidias_wheels() -> None:
    assert [version["version"].split(".")[0] for version in VERSIONS] == ["8", "10", "11"]
    for version in VERSIONS:
        assert re.fullmatch(rf"tensorrt_\w*bindings-{re.escape(version['version'])}-.*\.whl", version["source"])


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version["version"])
def test_every_call_is_one_that_the_version_has(version: dict[str, Any]) -> None:
    seen = set()
    for name, count, keywords in calls():
        full = [key for key in version["methods"] if key == name or key.endswith(f".{name}")]
        if name.startswith("IProgressMonitor") and version["version"].startswith("8."):
            continue  # made only where the module has the class
        assert full, f"{name} is not in {version['version']}"
        seen.update(full)
        overloads = [parameters for key in full for parameters in version["methods"][key]]
        assert any(fits(parameters, count, keywords) for parameters in overloads), (name, count, keywords, overloads)
    # The list says no more than the adapter calls, beside what TensorRT calls of ours.
    called_by_it = {"log", "phase_start", "step_complete", "phase_finish", "report_layer_time"}
    assert {key for key in version["methods"] if key.split(".")[1] not in called_by_it} == seen - {
        key for key in seen if key.split(".")[1] in called_by_it
    }


def test_a_call_of_another_shape_would_be_noticed() -> None:
    assert fits(["model", "path="], 1, ["path"]) and fits(["model", "path="], 1, [])
    assert not fits(["model", "path="], 1, ["folder"])
    assert not fits(["model", "path="], 0, ["path"])
    assert not fits(["name"], 2, []) and not fits(["name"], 1, ["name"])
    assert len({name for name, _, _ in calls()}) > 25


def test_what_tensorrt_calls_takes_what_it_gives() -> None:
    defined = {
        node.name: [argument.arg for argument in node.args.args[1:]]
        for part in functions()
        for node in ast.walk(part)
        if isinstance(node, ast.FunctionDef)
    }
    for version in VERSIONS:
        for name in ("log", "phase_start", "step_complete", "phase_finish", "report_layer_time"):
            for key, overloads in version["methods"].items():
                if key.endswith(f".{name}"):
                    assert overloads == [defined[name]]


def test_every_attribute_is_tensorrts_or_ours() -> None:
    known = NAMES | CLASSES | OURS | {"__init__", "__members__", "__version__", "Severity"}
    known |= {name for names in PROPERTIES.values() for name in names}
    known |= {part for name, members in ENUMS.items() for part in [*name.split("."), *members]}
    used = {node.attr for part in functions() for node in ast.walk(part) if isinstance(node, ast.Attribute)}
    assert used - known == set()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version["version"])
def test_what_is_used_everywhere_is_in_every_version(version: dict[str, Any]) -> None:
    optional = {
        "IBuilderConfig.progress_monitor",
        "ICudaEngine.device_memory_size",
        "ICudaEngine.device_memory_size_v2",
    }
    wanted = {f"{kind}.{name}" for kind, names in PROPERTIES.items() for name in names}
    assert wanted - optional <= set(version["properties"])
    assert any(name.startswith("ICudaEngine.device_memory_size") for name in version["properties"])
    members = version["members"]
    for name in ("MemoryPoolType", "TensorIOMode", "LayerType", "ILogger.Severity"):
        assert members[name] == ENUMS[name]
    assert "TF32" in members["BuilderFlag"] and set(members["DataType"]) <= set(DTYPES) == set(ENUMS["DataType"])
    # Flags for formats are set only where types are not the build's own.
    if "STRONGLY_TYPED" not in members["NetworkDefinitionCreationFlag"]:
        assert {"FP16", "INT8"} <= set(members["BuilderFlag"])
        assert "EXPLICIT_BATCH" in members["NetworkDefinitionCreationFlag"]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version["version"])
def test_the_constructed_module_has_what_the_real_one_has(version: dict[str, Any]) -> None:
    code = (
        "import inspect, json, tensorrt\n"
        "print(json.dumps({f'{kind}.{name}': [p.name + ('=' if p.default is not p.empty else '')"
        " for p in list(inspect.signature(method).parameters.values())[1:]]"
        " for kind, cls in vars(tensorrt).items() if inspect.isclass(cls)"
        " for name, method in vars(cls).items() if inspect.isfunction(method)}))\n"
    )
    folder = Path(__file__).parent / "constructed"
    environment = os.environ | {"PYTHONPATH": str(folder), "CONSTRUCTED_TENSORRT": version["version"]}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    constructed = json.loads(said.stdout)
    for name, overloads in version["methods"].items():
        if name in constructed and not name.startswith("IProgressMonitor.__"):
            # It need not have what a default stands for.
            required = [[parameter for parameter in one if not parameter.endswith("=")] for one in overloads]
            own = [parameter for parameter in constructed[name] if not parameter.endswith("=")]
            assert constructed[name] in overloads or own in required, name
    assert set(version["methods"]) - set(constructed) <= {"Logger.__init__"}


def test_cudas_calls_take_what_the_header_says() -> None:
    header = {
        # cuda_runtime_api.h of CUDA 12.6 (the wheel nvidia-cuda-runtime-cu12 12.6.77).
        "cudaGetDeviceCount": "int *count",
        "cudaDeviceGetAttribute": "int *value, enum cudaDeviceAttr attr, int device",
        "cudaRuntimeGetVersion": "int *runtimeVersion",
        "cudaMemGetInfo": "size_t *free, size_t *total",
        "cudaMalloc": "void **devPtr, size_t size",
        "cudaFree": "void *devPtr",
        "cudaMallocHost": "void **ptr, size_t size",
        "cudaFreeHost": "void *ptr",
        "cudaMemcpyAsync": "void *dst, const void *src, size_t count, enum cudaMemcpyKind kind, cudaStream_t stream",
        "cudaStreamCreate": "cudaStream_t *pStream",
        "cudaStreamDestroy": "cudaStream_t stream",
        "cudaStreamSynchronize": "cudaStream_t stream",
    }
    pointer, count, whole = ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_int
    # A stream is a pointer to what nobody sees; an enumeration is passed as an int.
    types = {
        "int *": ctypes.POINTER(whole),
        "size_t *": ctypes.POINTER(count),
        "void **": pointer,
        "cudaStream_t *": pointer,
        "void *": ctypes.c_void_p,
        "const void *": ctypes.c_void_p,
        "cudaStream_t ": ctypes.c_void_p,
        "size_t ": count,
        "int ": whole,
        "enum cudaDeviceAttr ": whole,
        "enum cudaMemcpyKind ": whole,
    }
    assert set(header) == set(SIGNATURES)
    for name, text in header.items():
        assert SIGNATURES[name] == tuple(types[re.sub(r"\w+$", "", one)] for one in text.split(", ")), name


@pytest.fixture
def here() -> None:
    availability = TensorRt().availability()
    if not availability.available:
        pytest.skip(availability.reason)


@pytest.mark.jetson
@pytest.mark.usefixtures("here")
def test_this_boards_module_has_what_the_adapter_calls() -> None:
    here = read(import_tensorrt())
    for name, count, keywords in calls():
        full = [key for key in here["methods"] if key == name or key.endswith(f".{name}")]
        if name.startswith("IProgressMonitor") and not full:
            continue
        assert any(fits(one, count, keywords) for key in full for one in here["methods"][key]), (name, here["version"])


@pytest.mark.jetson
@pytest.mark.usefixtures("here")
def test_this_boards_cuda_has_a_gpu() -> None:
    cuda = find_cuda()
    assert isinstance(cuda, Cuda)
    cuda.require_gpu()
    assert re.fullmatch(r"sm_\d+x\d+", cuda.gpu()) and re.fullmatch(r"\d+\.\d+", cuda.version())
    stream, device, host = cuda.create_stream(), cuda.allocate(8), cuda.allocate_host(8)
    ctypes.memmove(host, b"fleetfit", 8)
    cuda.to_device(device, host, 8, stream)
    cuda.synchronize(stream)
    ctypes.memset(host, 0, 8)
    cuda.to_host(host, device, 8, stream)
    cuda.synchronize(stream)
    assert ctypes.string_at(host, 8) == b"fleetfit"
    cuda.free(device)
    cuda.free_host(host)
    cuda.destroy_stream(stream)
