"""Whether the agent's timing agrees with others': `python -m benchmarks.agreement`, on a quiet machine.

For ONNX Runtime with the tightest loop that Python allows around the same module, and with a loop in C around the library that
its wheel ships too (`native_loop.c`, compiled here with `cc`), block by block in turn in several groups of processes; for OpenVINO
with its own `benchmark_app`, process by process in turn. Ours are the functions with which an agent's child takes its samples.
The smallest model does nothing: what ours takes longer than C there is what a call from Python costs. The C loop does not run the
code that Python runs: the wheel's Python module holds ONNX Runtime once more and does not export its C interface.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Outcome, run
from benchmarks.interleaved import median_interval
from fleetfit.runtimes.archive import pack
from fleetfit.runtimes.openvino import MEMBERS, import_openvino

MOST_APART: Final = 0.03
_BLOCK_NS: Final = 12_000_000
_FIRST_CALLS, _FEWEST_CALLS, _WARM_UP_BLOCKS = 20, 3, 25
_WARM_UP_NS: Final = 500_000_000
CLAIM = (
    f"The agent's median latency is within {MOST_APART:.0%} of the tightest Python loop's on the same ONNX Runtime module, for a "
    f"model of about 100 µs too, within {MOST_APART:.0%} of a C loop's on the library of the same wheel for one of about 1 ms, and "
    f"within {MOST_APART:.0%} of benchmark_app's for OpenVINO."
)


@dataclass(frozen=True)
class Subject:
    """A network with the shape of its one input."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def _subjects() -> list[Subject]:
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 10))
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return [
        Subject("nothing", nn.ReLU(), (1, 4)),
        Subject("small", small, (1, 256)),
        Subject("convolutions", convolutions, (1, 3, 28, 28)),
    ]


def agreement(quick: bool) -> Outcome:
    """Compare on three models; `--quick` for a few blocks."""
    processes, rounds, apps, seconds = (2, 3, 2, 1) if quick else (20, 40, 50, 1)
    with tempfile.TemporaryDirectory(prefix="fleetfit-agreement-") as name:
        folder = Path(name)
        loop = _compiled(folder)
        subjects = {one.name: one for one in _subjects()}
        files = {one.name: _to_onnx(one, folder) for one in subjects.values()}
        loops = {name: _beside_loops(one, files[name], loop, processes, rounds) for name, one in subjects.items()}
        app = _beside_app(subjects["convolutions"], files["convolutions"], folder, apps, seconds)
    figures = {"onnxruntime": loops, "openvino": app, "openvino_version": _openvino_version()}
    compared = [loops[name]["tight"]["ratio"] for name in ("small", "convolutions")]
    compared += [loops["convolutions"]["native"]["ratio"], app["ratio"]]
    return CLAIM, figures, all(abs(one["value"] - 1) <= MOST_APART for one in compared)


def _compiled(folder: Path) -> Path:
    program = folder / "native_loop"
    source = Path(__file__).parent / "native_loop.c"
    subprocess.run(["cc", "-O2", "-o", str(program), str(source), "-ldl"], check=True)
    return program


def _to_onnx(one: Subject, folder: Path) -> Path:
    path = folder / f"{one.name}.onnx"
    sample = torch.zeros(one.shape)
    program = torch.onnx.export(
        one.module.eval(), (sample,), dynamo=True, input_names=["x"], output_names=["y"], verbose=False
    )
    assert program is not None  # noqa: S101 - only without dynamo
    path.write_bytes(program.model_proto.SerializeToString())
    return path


def _library() -> Path:
    import onnxruntime

    (found,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return found


# Both answer as `native_loop` does. The second has nothing of ours.
_LOOP: Final = (
    "import sys, numpy as np; from pathlib import Path\n"
    "from fleetfit.runtimes.registry import runtime; from fleetfit.agent.measuring.timing import take_samples\n"
    "model = runtime('onnxruntime').load(Path(sys.argv[1]).read_bytes(), threads=1)\n"
    "call = model.bind({'x': np.full(tuple(map(int, sys.argv[2:])), 0.5, np.float32)})\n"
    "for line in sys.stdin: print(*take_samples(call, int(line), 10**10), flush=True)\n"
)
_TIGHT: Final = (
    "import sys, time, numpy as np, onnxruntime as ort\n"
    "options = ort.SessionOptions(); options.intra_op_num_threads = options.inter_op_num_threads = 1\n"
    "options.add_session_config_entry('session.force_spinning_stop', '1')\n"
    "session = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
    "x = np.full(tuple(map(int, sys.argv[2:])), 0.5, np.float32); binding = session.io_binding()\n"
    "binding.bind_cpu_input('x', x); binding.bind_output('y')\n"
    "def take(count, run=session._sess.run_with_iobinding, bound=binding._iobinding, clock=time.perf_counter_ns):\n"
    "    took = [0] * count\n"
    "    for at in range(count):\n"
    "        before = clock(); run(bound, None); took[at] = clock() - before\n"
    "    return took\n"
    "for line in sys.stdin: print(*take(int(line)), flush=True)\n"
)


def _beside_loops(one: Subject, file: Path, loop: Path, processes: int, rounds: int) -> dict[str, Any]:
    """Medians in nanoseconds, of blocks in turn, and ours over either loop's; fresh processes of all each time.

    Where a process's memory happens to lie makes it slower or faster as long as it lives, so one group of them says little.
    """
    shape = [str(size) for size in one.shape]
    commands = {
        "ours": [sys.executable, "-c", _LOOP, str(file), *shape],
        "tight": [sys.executable, "-c", _TIGHT, str(file), *shape],
        "native": [str(loop), str(_library()), str(file), "x", "y", *shape],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(processes):
        with contextlib.ExitStack() as stack:
            # Each is started first in every third group.
            order = [*commands][number % 3 :] + [*commands][: number % 3]
            takers = {name: _asked(stack.enter_context(_started(commands[name]))) for name in order}
            per_call = statistics.median(takers["native"](_FIRST_CALLS))
            size = max(_FEWEST_CALLS, round(_BLOCK_NS / per_call))
            for take in takers.values():
                take(size * _WARM_UP_BLOCKS)
            blocks = _in_turn({name: partial(take, size) for name, take in takers.items()}, rounds)
        for name, medians in blocks.items():
            found[name].append(statistics.median(medians))
    return {other: _compared(found, other) for other in ("tight", "native")}


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _asked(child: subprocess.Popen[str]) -> Callable[[int], list[int]]:
    """What asks a child for so many samples. It ends with its standard input."""

    def take(count: int) -> list[int]:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{count}\n")
        child.stdin.flush()
        return [int(word) for word in child.stdout.readline().split()]

    return take


def _in_turn(takers: dict[str, Callable[[], list[int]]], rounds: int) -> dict[str, list[float]]:
    order = random.Random(0)  # noqa: S311 - an order, not a secret
    blocks: dict[str, list[float]] = {name: [] for name in takers}
    for _ in range(rounds):
        for name in order.sample(list(takers), len(takers)):
            blocks[name].append(statistics.median(takers[name]()))
    return blocks


def _compared(blocks: dict[str, list[float]], other: str) -> dict[str, Any]:
    """Ours over theirs: the median over pairs of processes, with its 95 % interval."""
    ratios = np.array(blocks["ours"]) / np.array(blocks[other])
    medians = {f"{name}_ns": statistics.median(blocks[name]) for name in ("ours", other)}
    apart = statistics.median(ours - theirs for ours, theirs in zip(blocks["ours"], blocks[other], strict=True))
    return {**medians, "longer_by_ns": apart, "ratio": median_interval(ratios), "processes": len(ratios)}


# A process of its own for each turn, as `benchmark_app` is one.
_OURS: Final = (
    "import sys, statistics, numpy as np; from pathlib import Path\n"
    "from fleetfit.runtimes.registry import runtime; from fleetfit.agent.measuring.timing import take_samples, warm_up\n"
    "model = runtime('openvino').load(Path(sys.argv[1]).read_bytes(), threads=1)\n"
    "call = model.bind({'x': np.random.default_rng(0).random(tuple(map(int, sys.argv[3:])), np.float32)})\n"
    f"warm_up(call, {_WARM_UP_NS})\n"
    "print(statistics.median(take_samples(call, 10**9, int(float(sys.argv[2]) * 1e9))))\n"
)


def _beside_app(one: Subject, file: Path, folder: Path, processes: int, seconds: int) -> dict[str, Any]:
    openvino = import_openvino()
    openvino.save_model(openvino.convert_model(str(file)), str(folder / "model.xml"), compress_to_fp16=False)
    build = folder / "build"
    build.write_bytes(pack({member: (folder / member).read_bytes() for member in MEMBERS}))
    ours = [sys.executable, "-c", _OURS, str(build), str(seconds), *map(str, one.shape)]
    app = [str(Path(sysconfig.get_path("scripts")) / "benchmark_app"), "-m", str(folder / "model.xml"), "-d", "CPU"]
    app += ["-api", "sync", "-nthreads", "1", "-nstreams", "1", "-nireq", "1", "-infer_precision", "f32"]
    app += [
        "-hint",
        "none",
        "-t",
        str(seconds),
        "-report_type",
        "no_counters",
        "-report_folder",
        str(folder),
        "-json_stats",
    ]

    def by_app() -> list[int]:
        subprocess.run(app, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        said = json.loads((folder / "benchmark_report.json").read_text())
        return [round(float(said["execution_results"]["latency (ms)"]) * 1e6)]

    takers: dict[str, Callable[[], list[int]]] = {
        "ours": lambda: [round(float(subprocess.run(ours, check=True, capture_output=True, text=True).stdout))],
        "app": by_app,
    }
    return _compared(_in_turn(takers, processes), "app")


def _openvino_version() -> str:
    return str(import_openvino().__version__)


if __name__ == "__main__":
    sys.exit(run("agreement", agreement))
