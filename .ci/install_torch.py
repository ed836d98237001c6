"""Install the torch that the constraints name: its CPU build where this machine has no NVIDIA GPU.

PyTorch's own CPU index is asked first, because the default index carries a build with gigabytes of CUDA libraries for
Linux. Where that index does not answer, the default one serves. The output says which it was.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def wanted(constraints: Path) -> str:
    """The `torch==VERSION` line of a constraints file."""
    for line in constraints.read_text().splitlines():
        if line.startswith("torch=="):
            return line.strip()
    raise SystemExit(f"{constraints} names no torch version; add a line torch==VERSION")


def answers(index: str) -> bool:
    """Whether the index can be reached from here."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=10) as response:  # noqa: S310 - a fixed https address
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    """Install torch into the running interpreter's environment."""
    constraints = Path(sys.argv[1])
    requirement = wanted(constraints)
    if importlib.util.find_spec("torch") is not None:
        from importlib.metadata import version

        if version("torch").partition("+")[0] == requirement.partition("==")[2]:
            return 0
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", requirement]
    if sys.platform == "linux" and shutil.which("nvidia-smi") is None and answers(CPU_INDEX):
        print(f"Installing the CPU build of {requirement} from {CPU_INDEX} (no NVIDIA GPU here) ...", flush=True)
        command += ["--index-url", CPU_INDEX]
    else:
        why = "an NVIDIA GPU is here" if shutil.which("nvidia-smi") else "PyTorch's CPU index does not answer"
        print(f"Installing {requirement} from the default package index ({why}) ...", flush=True)
        command += ["--constraint", str(constraints)]
    return subprocess.call(command)  # noqa: S603 - our own arguments


if __name__ == "__main__":
    raise SystemExit(main())
