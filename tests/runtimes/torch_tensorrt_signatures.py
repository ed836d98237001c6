"""The signature of torch_tensorrt's call, read from its wheels.

    python -m tests.runtimes.torch_tensorrt_signatures torch_tensorrt-2.8.0-*.whl ...

writes torch_tensorrt_signatures.json from wheels of the package index (`pip download --no-deps`). The source is parsed and never
imported: it needs torch and TensorRT.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

KEPT = Path(__file__).with_name("torch_tensorrt_signatures.json")
CALL = "convert_exported_program_to_serialized_trt_engine"
# Where it is defined, and where it is offered.
MODULE, PACKAGE = "torch_tensorrt/dynamo/_compiler.py", "torch_tensorrt/dynamo/__init__.py"
INTERPRETER = "torch_tensorrt/dynamo/conversion/_TRTInterpreter.py"


def read_wheel(wheel: Path) -> dict[str, Any]:
    """What a wheel has: the call's parameters (`=` behind those with a default, `*` before those by name alone), its needs."""
    with zipfile.ZipFile(wheel) as archive:

        def text(name: str) -> str:
            return archive.read(name).decode()

        about = text(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))
        versions = dict(re.findall(r'^__(\w+)__ = "(.*)"$', text("torch_tensorrt/_version.py"), re.MULTILINE))
        (call,) = (
            one for one in ast.walk(ast.parse(text(MODULE))) if isinstance(one, ast.FunctionDef) and one.name == CALL
        )
        return {
            "source": wheel.name,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "version": versions["version"],
            "cuda": versions["cuda_version"],
            "requires": re.findall(r"^Requires-Dist: ((?:torch|tensorrt) ?[<>=].*)$", about, re.MULTILINE),
            "offered": CALL in text(PACKAGE),
            "outputs": 'f"output{i}"' in text(INTERPRETER),
            "parameters": _parameters(call.args),
        }


def _parameters(given: ast.arguments) -> list[str]:
    plain = [one.arg for one in given.args]
    optional = len(given.defaults)
    names = [f"{name}=" if at >= len(plain) - optional else name for at, name in enumerate(plain)]
    return names + [
        f"*{one.arg}{'' if default is None else '='}"
        for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]


if __name__ == "__main__":
    KEPT.write_text(json.dumps([read_wheel(Path(wheel)) for wheel in sys.argv[1:]], indent=1) + "\n")
