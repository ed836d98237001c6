"""The signatures of TensorRT's calls, read from its Python module.

    python -m tests.runtimes.signatures tensorrt_cu12_bindings-10.3.0-cp311-*.whl ...

writes tensorrt_signatures.json from NVIDIA's wheels of the bindings (`pip download --no-deps`). The module says its
signatures itself; it is loaded beside empty libraries in place of TensorRT's own, which only have to exist for that. Needs cc,
nm and a wheel for the Python that runs this.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

KEPT = Path(__file__).with_name("tensorrt_signatures.json")
METHODS = {
    "ILogger": ["__init__", "log"],
    "Logger": ["__init__"],
    "Builder": [
        "__init__",
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    ],
    "INetworkDefinition": ["get_layer", "get_input"],
    "ILayer": ["get_output"],
    "OnnxParser": ["__init__", "parse", "get_error"],
    "ParserError": ["desc"],
    "IBuilderConfig": ["set_memory_pool_limit", "clear_flag", "set_flag", "add_optimization_profile"],
    "IOptimizationProfile": ["set_shape"],
    "IProfiler": ["__init__", "report_layer_time"],
    "IProgressMonitor": ["__init__", "phase_start", "step_complete", "phase_finish"],
    "Runtime": ["__init__", "deserialize_cuda_engine"],
    "ICudaEngine": [
        "create_execution_context",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "get_tensor_shape",
        "get_tensor_profile_shape",
    ],
    "IExecutionContext": ["set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3"],
}
PROPERTIES = {
    "INetworkDefinition": ["num_layers", "num_inputs"],
    "ILayer": ["type", "num_outputs"],
    "ITensor": ["name", "shape", "dtype"],
    "OnnxParser": ["num_errors"],
    "IBuilderConfig": ["progress_monitor"],
    "IExecutionContext": ["profiler"],
    "ICudaEngine": ["num_io_tensors", "device_memory_size", "device_memory_size_v2"],
}
ENUMS = {
    "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
    "BuilderFlag": ["TF32", "FP16", "INT8"],
    "MemoryPoolType": ["WORKSPACE"],
    "TensorIOMode": ["INPUT", "OUTPUT"],
    "DataType": ["FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8"],
    "LayerType": ["QUANTIZE"],
    "ILogger.Severity": ["INTERNAL_ERROR", "ERROR"],
}
READ = """
import json, sys
from tests.runtimes.signatures import read
import tensorrt_bindings
json.dump(read(tensorrt_bindings), sys.stdout)
"""


def read(trt: Any) -> dict[str, Any]:
    """What a version has: of each method its overloads as lists of parameters (`=` behind those with a default)."""
    methods = {
        f"{kind}.{name}": _overloads(name, getattr(getattr(trt, kind), name).__doc__)
        for kind, names in METHODS.items()
        for name in names
        if hasattr(trt, kind) and hasattr(getattr(trt, kind), name)
    }
    properties = [
        f"{kind}.{name}"
        for kind, names in PROPERTIES.items()
        for name in names
        if hasattr(getattr(trt, kind, None), name)
    ]
    members = {name: [m for m in wanted if m in _enum(trt, name).__members__] for name, wanted in ENUMS.items()}
    return {"version": trt.__version__, "methods": methods, "properties": properties, "members": members}


def _enum(trt: Any, name: str) -> Any:
    for part in name.split("."):
        trt = getattr(trt, part)
    return trt


def _overloads(name: str, text: str) -> list[list[str]]:
    found = []
    for line in text.splitlines():
        said = re.fullmatch(rf"(?:\d+\. )?{name}\((self: .*)\) -> .*", line.strip())
        if said:
            parameters = re.split(r", (?=\w+: )", said[1])[1:]
            found.append([one.split(":")[0] + ("=" if re.search(r" = ", one) else "") for one in parameters])
    assert found, text
    return found


def fits(parameters: list[str], count: int, keywords: list[str]) -> bool:
    """Whether a call with so many arguments and these keywords is one that takes `parameters`."""
    names = [name.rstrip("=") for name in parameters]
    given = [*names[:count], *keywords]
    needed = {name for name in parameters if not name.endswith("=")}
    return count <= len(names) and set(given) <= set(names) and len(given) == len(set(given)) and needed <= set(given)


def read_wheel(wheel: Path) -> dict[str, Any]:
    """Load a wheel's module in a process of its own, beside empty libraries."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        module = next(Path(folder).glob("tensorrt_bindings/tensorrt*.so"))
        undefined = subprocess.run(["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True)
        names = [line.split()[1] for line in undefined.stdout.splitlines() if line.split()[0] == "U"]
        names = [name for name in names if "@" not in name and not re.match("_?Py", name)]
        Path(folder, "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
        needed = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"\[(libnv\S+)\]", needed):
            target = ["-Wl,-soname," + library, "-o", f"{folder}/{library}", f"{folder}/empty.c"]
            subprocess.run(["cc", "-w", "-shared", "-fPIC", *target], check=True)
        paths = {"LD_LIBRARY_PATH": folder, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
        said = subprocess.run(
            [sys.executable, "-c", READ], env=os.environ | paths, capture_output=True, text=True, check=True
        )
        return {"source": wheel.name, **json.loads(said.stdout)}


if __name__ == "__main__":
    versions = [read_wheel(Path(wheel)) for wheel in sys.argv[1:]]
    KEPT.write_text(json.dumps(versions, indent=1) + "\n")
