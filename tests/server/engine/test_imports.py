from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "scipy", "bokeh"}


def test_the_engine_keeps_heavy_libraries_out_of_the_servers_process() -> None:
    """They belong into children: the server must stay small, and a crash in them must not end it."""
    code = "import sys, fleetfit.server.engine.engine; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())
