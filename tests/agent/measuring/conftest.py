from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_CRASHING = """
import os
from fleetfit.runtimes.base import Availability, Runtime
class Crashing(Runtime):
    name, formats = "crashing", ("onnx",)
    def availability(self): return Availability(True, "", "1.0", ("CPU",))
    def load(self, build, *, threads): os.abort()
"""


@pytest.fixture
def crashing_runtime(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with an installed runtime that brings its process down, as native code does."""
    site = tmp_path / "site"
    facts = site / "crashing-1.0.dist-info"
    facts.mkdir(parents=True)
    (site / "crashing_adapter.py").write_text(_CRASHING)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fleetfit.runtimes]\ncrashing = crashing_adapter:Crashing\n")
    return site


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
