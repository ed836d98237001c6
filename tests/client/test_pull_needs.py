"""What a pulled build's run.py is said to need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleetfit.client.pulling import Pulled, needed


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"runtime": "onnxruntime"}, "onnxruntime and numpy"),
        ({"runtime": "openvino", "parts": {"pre": {}}}, "fleetfit[openvino,onnxruntime]"),
        ({"runtime": "tensorrt"}, "fleetfit, numpy and TensorRT's Python module"),
        ({"runtime": "tensorrt", "parts": {"pre": {}}}, "fleetfit[onnxruntime] and TensorRT's Python module"),
        ({"runtime": "torch_tensorrt"}, "fleetfit, numpy and torch_tensorrt"),
        ({"runtime": "onnxruntime-cuda", "parts": {"pre": {}}}, "fleetfit, numpy and onnxruntime-gpu"),
    ],
)
def test_no_extra_is_named_that_does_not_exist(manifest: dict[str, Any], words: str) -> None:
    assert needed(Pulled(Path(), Path(), manifest)) == words
