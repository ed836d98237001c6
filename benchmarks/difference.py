"""Whether a small difference is found beside a noisy neighbour, and how often an interval holds the truth.

`python -m benchmarks.difference --lines FILE`, twice: the second occasion begins two hours after the first has begun.

Two chains of equal operators, one 3 % longer than the other, and one chain beside its own copy. A run is a whole measurement as
an agent makes it, in about 10 seconds, while `benchmarks.neighbour` disturbs, by a seed of its own. Beside it what many do: each
build timed in a process of its own for as long, and Welch's test of the samples.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import Outcome, Parts, run_in_parts
from fleetfit.core.statistics_student import Interval, student_quantile
from fleetfit.proto.figures import pair_ratio
from fleetfit.proto.methods import named_method
from fleetfit.proto.v1 import common_pb2, measurement_pb2

LAYERS: Final = {"baseline": 103, "different": 100, "equal": 103}
_WIDTH, _ROWS = 64, 16
RUNS, NAIVE_RUNS, QUICK_RUNS = 50, 10, 1
APART_S: Final = 2 * 3600
NAIVE_S: Final = 4.5
_MS: Final = 1_000_000
CLAIM = (
    "Beside a noisy neighbour, in runs of about 10 s, a difference of 3 % in operators is called right at 99 % confidence in at "
    "least 95 of 100 runs and equal builds are called different in at most 5 of 100; 95 % intervals of occasions two hours apart "
    "hold the pooled ratio in at least 184 of 200."
)
Run = dict[str, Any]


def difference(quick: bool, parts: Parts) -> Outcome:
    """Both occasions; the second says when it can begin."""
    with tempfile.TemporaryDirectory(prefix="fleetfit-difference-") as name:
        folder = Path(name)
        for title, layers in LAYERS.items():
            (folder / f"{title}.onnx").write_bytes(_chain(layers))
        first = _occasion(1, quick, parts, folder)
        begin = min(run["ended_unix"] for run in first) + APART_S
        if not quick and not parts.known(_name(2, "different", 0)) and time.time() < begin:
            sys.exit(
                f"the first occasion is measured; run it again after {time.strftime('%H:%M', time.localtime(begin))}"
            )
        runs = first + ([] if quick else _occasion(2, quick, parts, folder))
    return _judged(runs)


def _occasion(number: int, quick: bool, parts: Parts, folder: Path) -> list[Run]:
    """Runs of all kinds in turn, so that what the machine does meanwhile meets all of them."""
    runs: list[Run] = []
    for at in range(QUICK_RUNS if quick else RUNS):
        for kind in ("different", "equal"):
            seed = (number * 1000 + at) * 2 + (kind == "equal")
            runs.append(parts.part(_name(number, kind, at), partial(_ours, kind, seed, folder)))
            if at < (QUICK_RUNS if quick else NAIVE_RUNS):
                runs.append(parts.part(f"naive {_name(number, kind, at)}", partial(_naive, kind, seed, folder)))
    return runs


def _name(occasion: int, kind: str, at: int) -> str:
    return f"{kind}, occasion {occasion}, run {at}"


def _chain(layers: int) -> bytes:
    """So many matrix products with ReLU, each with weights of its own that keep the values' size."""
    chance = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for at in range(layers):
        values = chance.normal(0, math.sqrt(2 / _WIDTH), (_WIDTH, _WIDTH)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{at}"))
        output = "y" if at == layers - 1 else f"r{at}"
        nodes += [
            helper.make_node("MatMul", [last, f"w{at}"], [f"m{at}"]),
            helper.make_node("Relu", [f"m{at}"], [output]),
        ]
        last = output
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_ROWS, _WIDTH]) for name in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@contextmanager
def _neighbour(seed: int) -> Iterator[None]:
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.neighbour", str(seed)])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def _method() -> measurement_pb2.Method:
    """The standard method in a budget of 10 s, of which the ratio is to have nearly all."""
    method = named_method("standard")
    method.MergeFrom(
        measurement_pb2.Method(
            warmup_limit_ns=300 * _MS,
            solo_samples=20,
            solo_limit_ns=100 * _MS,
            pair_limit_ns=9_200 * _MS,
            more_rounds_limit_ns=100 * _MS,
            quiet_limit_ns=1,
            cool_limit_ns=1,
        )
    )
    method.energy_rounds = 0
    return method


def _ours(kind: str, seed: int, folder: Path) -> Run:
    """One measurement in a fresh process, as the agent starts it."""
    with tempfile.TemporaryDirectory(dir=folder) as name, _neighbour(seed):
        taskdir = Path(name)
        (taskdir / "in").mkdir()
        task = measurement_pb2.MeasureTask(job_id="job", threads=1, batch=_ROWS, method=_method())
        for ref, title in ((task.candidate, kind), (task.baseline, "baseline")):
            (taskdir / "in" / title).write_bytes((folder / f"{title}.onnx").read_bytes())
            ref.CopyFrom(_build_ref(title, seed))
        (taskdir / "task.pb").write_bytes(task.SerializeToString())
        began = time.monotonic()
        # Whoever else measures on this host is part of the noise.
        alone = os.environ | {"FLEETFIT_HOST_LOCK": str(taskdir / "lock")}
        subprocess.run([sys.executable, "-m", "fleetfit.agent.measuring", str(taskdir)], check=True, env=alone)
        lasted = time.monotonic() - began
        found = measurement_pb2.MeasurementResult.FromString(gzip.decompress((taskdir / "result.pb.gz").read_bytes()))
    ratio = pair_ratio(found.pairs)
    if ratio is None:
        raise SystemExit(f"nothing was measured: {found.message}")
    return {
        "ratio": ratio.value,
        "ci95": [ratio.low, ratio.high],
        "ci99": list(_at_99(ratio, len(found.pairs))),
        "processes": len(found.pairs),
        "p50_ms": statistics.median(
            ns for run in found.pairs for b in run.blocks if not b.candidate for ns in b.latency_ns
        )
        / _MS,
        "lasted_s": lasted,
        "ended_unix": time.time(),
        "kind": kind,
        "naive": False,
    }


def _build_ref(title: str, seed: int) -> measurement_pb2.BuildRef:
    spec = {"dtype": "float32", "shape": [_ROWS, _WIDTH]}
    return measurement_pb2.BuildRef(
        artifact_name=title,
        runtime="onnxruntime",
        format="onnx",
        build_id=f"{title}-{seed}",  # the order of blocks is drawn by it
        inputs=[common_pb2.TensorSpec(name="x", **spec)],
        outputs=[common_pb2.TensorSpec(name="y", **spec)],
    )


def _at_99(ratio: Interval, processes: int) -> tuple[float, float]:
    """The same interval at 99 %: Student's, with a degree of freedom less for each order of loading."""
    wider = student_quantile(0.995, processes - 2) / student_quantile(0.975, processes - 2)
    half = math.log(ratio.high / ratio.low) / 2 * wider
    return ratio.value * math.exp(-half), ratio.value * math.exp(half)


_TIMED: Final = (
    "import sys, time, numpy as np, onnxruntime\n"
    "options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1\n"
    "session = onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
    "feeds = {'x': np.full(tuple(map(int, sys.argv[3:])), 0.5, np.float32)}; times = []\n"
    "for _ in range(10): session.run(None, feeds)\n"
    "end = time.perf_counter() + float(sys.argv[2])\n"
    "while time.perf_counter() < end:\n"
    "    began = time.perf_counter(); session.run(None, feeds); times.append(time.perf_counter() - began)\n"
    "np.save(sys.stdout.buffer, np.array(times))\n"
)


def _naive(kind: str, seed: int, folder: Path) -> Run:
    """Each build alone in a process, one after the other, and Welch's test of the means."""
    from io import BytesIO

    from scipy import stats

    def times(title: str) -> NDArray[np.float64]:
        command = [sys.executable, "-c", _TIMED, str(folder / f"{title}.onnx"), str(NAIVE_S), str(_ROWS), str(_WIDTH)]
        found: NDArray[np.float64] = np.load(
            BytesIO(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        )
        return found

    began = time.monotonic()
    with _neighbour(seed):
        baseline, candidate = times("baseline"), times(kind)
    found = stats.ttest_ind(baseline, candidate, equal_var=False)
    return {
        "ratio": float(baseline.mean() / candidate.mean()),
        "p": float(found.pvalue),
        "ratio_of_medians": float(np.median(baseline) / np.median(candidate)),
        "lasted_s": time.monotonic() - began,
        "ended_unix": time.time(),
        "kind": kind,
        "naive": True,
    }


def _judged(runs: list[Run]) -> Outcome:
    ours = {kind: [run for run in runs if run["kind"] == kind and not run["naive"]] for kind in ("different", "equal")}
    naive = {kind: [run for run in runs if run["kind"] == kind and run["naive"]] for kind in ("different", "equal")}
    right = sum(run["ci99"][0] > 1 for run in ours["different"])
    backwards = sum(run["ci99"][1] < 1 for run in ours["different"])
    wrong = sum(not run["ci99"][0] <= 1 <= run["ci99"][1] for run in ours["equal"])
    pooled = {kind: math.exp(statistics.fmean(math.log(run["ratio"]) for run in found)) for kind, found in ours.items()}
    held = {
        kind: sum(run["ci95"][0] <= pooled[kind] <= run["ci95"][1] for run in found) for kind, found in ours.items()
    }
    everything = ours["different"] + ours["equal"]
    figures = {
        "operators": {"baseline": 2 * LAYERS["baseline"], "candidate": 2 * LAYERS["different"]},
        "expected_ratio": LAYERS["baseline"] / LAYERS["different"],
        "runs": {kind: len(found) for kind, found in ours.items()},
        "called_right": right,
        "called_the_wrong_way": backwards,
        "equal_called_different": wrong,
        "pooled_ratio": pooled,
        "intervals": len(everything),
        "held_pooled": sum(held.values()),
        "held_by_kind": held,
        "baseline_p50_ms": statistics.median(run["p50_ms"] for run in everything),
        "median_seconds": statistics.median(run["lasted_s"] for run in everything),
        "median_processes": statistics.median(run["processes"] for run in everything),
        "hours_between_begins": _hours_between(everything),
        "naive": {
            "runs": {kind: len(found) for kind, found in naive.items()},
            "called_right": sum(run["p"] < 0.01 and run["ratio"] > 1 for run in naive["different"]),
            "called_the_wrong_way": sum(run["p"] < 0.01 and run["ratio"] < 1 for run in naive["different"]),
            "equal_called_different": sum(run["p"] < 0.01 for run in naive["equal"]),
            "median_seconds": statistics.median(run["lasted_s"] for run in naive["equal"]),
            "ratio_of_medians_spread": _spread([run["ratio_of_medians"] for run in naive["equal"]]),
        },
        "ratio_spread": {kind: _spread([run["ratio"] for run in found]) for kind, found in ours.items()},
    }
    holds = (
        right >= 0.95 * len(ours["different"])
        and wrong <= 0.05 * len(ours["equal"])
        and figures["held_pooled"] >= 0.92 * len(everything)
    )
    return CLAIM, figures, holds


def _hours_between(runs: list[Run]) -> float:
    """From the begin of the first occasion to that of the last: between the two lies the longest pause."""
    ended = sorted(run["ended_unix"] for run in runs)
    pauses = [later - earlier for earlier, later in itertools.pairwise(ended)]
    second = ended[pauses.index(max(pauses)) + 1] if pauses else ended[0]
    return float(second - ended[0]) / 3600


def _spread(ratios: list[float]) -> list[float]:
    """The 5th and 95th percentile."""
    return [float(value) for value in np.quantile(ratios, (0.05, 0.95))]


if __name__ == "__main__":
    sys.exit(run_in_parts("difference", difference))
