"""What all benchmarks share: their options, the machine that they ran on, and the one shape of their result."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs

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


def cache_folder(name: str, made_with: Mapping[str, Any]) -> Path:
    """Where a benchmark keeps what it made with these settings, so that it is not made again.

    Below `FLEETFIT_BENCHMARK_CACHE`, else in the user's cache.
    """
    key = hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:12]
    root = os.environ.get("FLEETFIT_BENCHMARK_CACHE") or Path(platformdirs.user_cache_dir("fleetfit")) / name
    folder = Path(root) / key
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(made_with, indent=2) + "\n")
    return folder


class Parts:
    """Figures of finished parts of a benchmark, kept in a file of JSON lines, so that a run that was cut off goes on."""

    def __init__(self, file: Path | None, seconds: float = float("inf")) -> None:
        self._file, self._end = file, time.monotonic() + seconds
        lines = file.read_text().splitlines() if file and file.exists() else []
        self._known = {line["part"]: line["figures"] for line in map(json.loads, lines)}

    def reachable(self, name: str) -> bool:
        """Whether the part is known, or there is time left to make it."""
        return self.known(name) or time.monotonic() < self._end

    def known(self, name: str) -> bool:
        """Whether the part was made by an earlier run, or in this one."""
        return name in self._known

    def part(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of the part with this name, made where they are not known; the name says all that decides them."""
        if name not in self._known:
            began = time.monotonic()
            # As it is read back, so that a run in one go and one in two give the same.
            self._known[name] = json.loads(json.dumps({**make(), "seconds": time.monotonic() - began}))
            print(f"{name}: {self._known[name]}", file=sys.stderr, flush=True)
            if self._file:
                with self._file.open("a") as file:
                    file.write(json.dumps({"part": name, "figures": self._known[name]}) + "\n")
        found: dict[str, Any] = self._known[name]
        return found


def run(name: str, benchmark: Callable[[bool], Outcome]) -> int:
    """Run a benchmark and show its result; a full run's is kept in `benchmarks/results/`. 1 where the claim fails."""
    return _run(name, benchmark.__doc__, lambda options: benchmark(options.quick), in_parts=False)


def run_in_parts(name: str, benchmark: Callable[[bool, Parts], Outcome]) -> int:
    """The same for a benchmark that can go on where it was cut off; the file of its parts is given by `--lines`."""
    return _run(name, benchmark.__doc__, lambda options: benchmark(options.quick, _parts(options)), in_parts=True)


def _parts(options: argparse.Namespace) -> Parts:
    return Parts(options.lines, options.seconds)


def _run(name: str, what: str | None, benchmark: Callable[[argparse.Namespace], Outcome], *, in_parts: bool) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=what)
    parser.add_argument("--quick", action="store_true", help="a trial within a minute; its figures say little")
    parser.add_argument("--json", action="store_true", help="the result as JSON on the last line")
    if in_parts:
        parser.add_argument("--lines", type=Path, help="a file of JSON lines to go on with")
        parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other part after so long")
    options = parser.parse_args()
    claim, figures, holds = benchmark(options)
    result = {"claim": claim, "figures": figures, "holds": holds, "machine": machine()}
    if not options.quick:
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))
    return 0 if holds or options.quick else 1
