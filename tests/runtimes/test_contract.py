"""The contract of `Runtime`, tested on every adapter that is installed: ours and third parties'.

An adapter for another format is tested once `builds.py` has samples of that format.
"""

from __future__ import annotations

import pytest

from .contract import ADAPTERS, RuntimeContract

# These are on no machine without a GPU; test_tensorrt.py and others have their adapters beside constructed libraries.
ON_A_GPU = ("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt")
NAMES = [pytest.param(name, marks=pytest.mark.jetson) if name in ON_A_GPU else name for name in ADAPTERS]


@pytest.mark.parametrize("name", NAMES)
class TestRuntimeContract(RuntimeContract):
    pass
