from __future__ import annotations

import json
import subprocess
import sys

# grpc itself imports its health and reflection packages where they are installed.
ALLOWED = {"fleetfit", "grpc", "google", "psutil", "typing_extensions", "cython_runtime"}
ALLOWED |= {"grpc_health", "grpc_reflection"}


def test_the_resident_agent_imports_nothing_but_the_standard_library_psutil_and_grpc() -> None:
    code = (
        "import sys; sys.argv = ['agent']; before = set(sys.modules)\n"
        "import fleetfit.agent.__main__, json\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
        "print(json.dumps(sorted(name for name in sys.modules if name.startswith('fleetfit.'))))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    roots, ours = (json.loads(line) for line in output.splitlines())
    foreign = {root for root in roots if root not in sys.stdlib_module_names and not root.startswith("_")} - ALLOWED
    assert foreign == set()
    components = {name.split(".")[1] for name in ours}
    assert components <= {"agent", "proto", "core"}
    assert not any("statistics" in name or "measuring" in name or "enrol." in name for name in ours)
