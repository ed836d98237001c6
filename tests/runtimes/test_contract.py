"""The contract of `Runtime`, tested on every adapter that is installed: ours and third parties'.

An adapter for another format is tested once `builds.py` has samples of that format.
"""

from __future__ import annotations

import pytest

from .contract import ADAPTERS, RuntimeContract

# TensorRT's own is on no other machine; test_tensorrt.py has its adapter beside a constructed one.
NAMES = [pytest.param(name, marks=pytest.mark.jetson) if name == "tensorrt" else name for name in ADAPTERS]


@pytest.mark.parametrize("name", NAMES)
class TestRuntimeContract(RuntimeContract):
    pass
