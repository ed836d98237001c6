"""The contract of `Runtime`, tested on every adapter that is installed: ours and third parties'.

An adapter for another format is tested once `builds.py` has samples of that format.
"""

from __future__ import annotations

import pytest

from .contract import ADAPTERS, RuntimeContract

# On no machine without a GPU; test_tensorrt.py and test_onnxruntime_gpu.py have their adapters beside constructed libraries.
# So has test_torch_tensorrt.py.
PROVIDERS = ("onnxruntime-cuda", "onnxruntime-tensorrt", "torch_tensorrt")


def marks(name: str) -> list[pytest.MarkDecorator]:
    """A board has TensorRT, and proves ONNX Runtime's providers and torch_tensorrt too where somebody has installed them."""
    if name in PROVIDERS:
        return [pytest.mark.gpu, *([pytest.mark.jetson] if ADAPTERS[name].availability().available else [])]
    return [pytest.mark.jetson] if name == "tensorrt" else []


NAMES = [pytest.param(name, marks=marks(name)) for name in ADAPTERS]


@pytest.mark.parametrize("name", NAMES)
class TestRuntimeContract(RuntimeContract):
    pass
