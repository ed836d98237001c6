"""ONNX Runtime as installed, with constructed CUDA and TensorRT providers that compute on the processor.

It proves nothing of a GPU. It is there so that the adapter's own work (what is asked for, where operators ran, engines, pieces of
batches, refusals) runs in tests and in their children. CONSTRUCTED_ABSENT names providers that do not start, CONSTRUCTED_ON_CPU
operators that stay on the processor, both separated by commas.
"""

from __future__ import annotations

import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_HERE = Path(__file__).parents[1]
_real = PathFinder.find_spec("onnxruntime", [path for path in sys.path if Path(path or ".").resolve() != _HERE])
__path__ = list(_real.submodule_search_locations)
__file__ = _real.origin
exec(compile(Path(__file__).read_text(), __file__, "exec"))

runpy.run_path(str(_HERE / "providers.py"))["pretend"](sys.modules[__name__], setattr)
