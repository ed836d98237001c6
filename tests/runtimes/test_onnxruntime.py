"""What only ONNX Runtime's adapter does."""

from __future__ import annotations

import onnxruntime
import pytest

from fleetfit.runtimes.onnxruntime import OnnxRuntime


@pytest.mark.parametrize(
    ("version", "new"),
    [
        ("1.17.3", False),
        ("0.9", False),
        ("1.18.0", True),
        ("1.32.0.dev20261001", True),
        ("2.0.0+cpu", True),
        ("", True),
    ],
)
def test_a_version_that_cannot_read_builds_is_not_available(
    version: str, new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)

    found = OnnxRuntime().availability()

    assert found.available is new
    assert new or (version in found.reason and "onnxruntime>=1.18" in found.reason)
