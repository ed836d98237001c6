"""What all benchmarks share: their options, the machine that they ran on, and the one shape of their result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# A claim, its figures, and whether it holds.
Outcome = tuple[str, dict[str, Any], bool]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from fleetfit.agent.probe.files import Tree
    from fleetfit.agent.probe.processor import read_processor

    processor = read_processor(Tree())
    wanted = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
    return {
        "processor": processor.model,
        "cores": len(os.sched_getaffinity(0)),
        "instruction_sets": [flag for flag in wanted if flag in processor.flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions("torch", "onnxruntime", "numpy")},
    }


def versions(*names: str) -> dict[str, str]:
    """Of installed packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def run(name: str, benchmark: Callable[[bool], Outcome]) -> int:
    """Run a benchmark and show its result; a full run's is kept in `benchmarks/results/`. 1 where the claim fails."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=benchmark.__doc__)
    parser.add_argument("--quick", action="store_true", help="a trial within a minute; its figures say little")
    parser.add_argument("--json", action="store_true", help="the result as JSON on the last line")
    options = parser.parse_args()
    claim, figures, holds = benchmark(options.quick)
    result = {"claim": claim, "figures": figures, "holds": holds, "machine": machine()}
    if not options.quick:
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))
    return 0 if holds or options.quick else 1
