"""`python run.py --check` in a pulled folder: whether the build, on this machine, is what its report says.

Compares the files with their digests, the build's outputs with those that were stored when it was made, its time in fresh
processes with the report's interval, and the conditions with those that it was measured under. `fleetfit pull` puts this
file beside the build as check.py; it needs NumPy and the runtime alone.

Exit code 0: files and outputs are the same, and it is no slower than reported. 1: something is not, or could not be tried.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Arrays = Mapping[str, Any]
# Of Student's t, 97.5 %, for 1 to 15 degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
# Two that differ by less are one and the same to whoever deploys them: the margin of ties in the report.
_EVEN = 0.01
# Equal whole numbers come from comparisons of floats, where rounding may decide.
_DIFFERENT_INTEGERS = 0.02
_STRETCH_S, _STRETCH_CALLS, _STEADY = 0.03, 6, 0.03
_WARM_S, _SAMPLES, _SAMPLE_S, _FEWEST = 1.0, 700, 2.0, 5
_CHILD_S = 600
_LIMITS = (
    "the report's calls took turns with the original's in one process, these run alone, which may be a little faster",
    "it was another time: what else ran, and how warm the device was, cannot be compared",
)


class Stop(Exception):
    """Something could not be tried; the text says what to do."""


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="run.py --check", description="Is this build, on this machine, what its report says?"
    )
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.add_argument("--no-time", action="store_true", help="only the files, the outputs and the conditions")
    parser.add_argument("--processes", type=int, default=6, metavar="N", help="fresh processes to time in, 2 to 16 (6)")
    given = parser.parse_args(arguments)
    if not 2 <= given.processes <= 16:
        parser.error("--processes must be from 2 to 16")
    try:
        manifest: dict[str, Any] = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
        if given.measure:
            print(json.dumps(measure(manifest)))
            return 0
        found = check(manifest, 0 if given.no_time else given.processes)
    except Exception as error:  # runtimes' have no common root
        said = str(error) if isinstance(error, Stop) else f"{type(error).__name__}: {error}"
        if given.measure or not given.json:
            print(f"it could not be checked: {said}", file=sys.stderr)
        else:
            print(json.dumps({"holds": False, "error": said}))
        return 1
    print(json.dumps(found) if given.json else in_words(found))
    return 0 if found["holds"] else 1


def check(manifest: dict[str, Any], processes: int) -> dict[str, Any]:
    """Everything that can be compared; `processes` 0 is no timing."""
    files = [file_as_sent(name, described) for name, described in manifest["files"].items()]
    found: dict[str, Any] = {"files": files, "outputs": [], "time": None, "conditions": [], "notes": []}
    if not all(one["same"] for one in files):
        # A file that was changed is not run.
        found["notes"].append("files differ from what was sent, so nothing was run; pull the build again")
        return found | {"holds": False}
    model = load(manifest)
    found["outputs"] = outputs_as_stored(manifest, model)
    if not found["outputs"]:
        found["notes"].append(
            "the build came without samples, so its outputs were not compared; pull it from a newer server"
        )
    found["conditions"] = conditions(manifest, model["version"])
    model.clear()
    if processes:
        found["time"] = time_as_reported(manifest, processes)
        found["notes"] += [*_LIMITS] if found["time"]["inside"] is not None else [found["time"]["words"]]
    load_1m, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load_1m > 0.2 * cores + 1:
        found["notes"].append(f"others work on this machine (load {load_1m:.1f} on {cores} processors)")
    slower = found["time"] is not None and found["time"]["slower"]
    if slower and manifest.get("emulated"):
        slower = False
        found["notes"].append(
            "it was measured on an emulated device, whose times mean nothing: that it is slower does not count"
        )
    return found | {"holds": all(one["same"] for one in found["outputs"]) and not slower}


def file_as_sent(name: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a file has the digest of the manifest."""
    path = HERE / Path(name).name
    if not path.is_file():
        return {"name": name, "same": False, "why": "it is missing"}
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    same = digest.hexdigest() == described["sha256"]
    return {"name": name, "same": same, "why": "" if same else "its SHA-256 is another"}


def load(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The build as the agent loads it: `run` (inputs to outputs by name), `bind` (inputs to a call), `version`."""
    content, threads = (HERE / manifest["build"]).read_bytes(), manifest["options"]["threads"]
    name = manifest.get("runtime", "onnxruntime")
    if name != "onnxruntime":
        try:
            adapter = importlib.import_module("fleetfit.runtimes.registry").runtime(name)
        except ImportError as error:
            raise Stop(f'builds for {name} need fleetfit here: pip install "fleetfit[{name}]" ({error})') from error
        loaded = adapter.load(content, threads=threads)
        return {"run": loaded.run, "bind": loaded.bind, "version": adapter.availability().version}
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise Stop(f"ONNX Runtime is missing here: pip install onnxruntime ({error})") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def bind(feeds: Arrays) -> Callable[[], None]:
        binding = session.io_binding()
        for name, values in feeds.items():
            binding.bind_cpu_input(name, values)
        for name in names:
            binding.bind_output(name)
        # The arrays must outlive the binding, which holds only their addresses.
        return lambda held=feeds: session.run_with_iobinding(binding)  # type: ignore[misc]

    def run(feeds: Arrays) -> dict[str, Any]:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return {"run": run, "bind": bind, "version": str(onnxruntime.__version__)}


def outputs_as_stored(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each output beside the stored one: the largest difference as a share of the largest value, and what is allowed."""
    import numpy as np

    told = manifest.get("check") or {}
    if "samples" not in told:
        return []
    inputs, wanted = samples(told["samples"])
    got, tolerance, found = model["run"](inputs), float(told["tolerance"]), []
    for name, there in wanted.items():
        here = got.get(name)
        if here is None or here.shape != there.shape:
            found.append({"name": name, "same": False, "distance": None, "tolerance": tolerance})
            continue
        if there.dtype.kind != "f":
            distance, allowed = float((here != there).mean()), _DIFFERENT_INTEGERS
        else:
            a, b = here.astype(np.float64), there.astype(np.float64)
            both = np.isfinite(a) & np.isfinite(b)
            scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) or 1.0
            alike = (a == b) | (np.isnan(a) & np.isnan(b))
            with np.errstate(invalid="ignore"):
                apart = np.where(alike, 0.0, np.where(both, np.abs(a - b) / scale, math.inf))
            distance, allowed = float(apart.max(initial=0.0)), tolerance
        shown = distance if math.isfinite(distance) else None
        found.append({"name": name, "same": distance <= allowed, "distance": shown, "tolerance": allowed})
    return found


def samples(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Stored inputs and outputs by name."""
    import numpy as np

    with np.load(HERE / Path(name).name, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for part, kind in zip(parts, ("inputs/", "outputs/"), strict=True):
        part.update({key[len(kind) :]: values for key, values in arrays.items() if key.startswith(kind)})
    return parts


def time_as_reported(manifest: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """The median over fresh processes beside the report's, and the ratio with its 95 % interval."""
    medians, steady = [], True
    for number in range(1, processes + 1):
        if sys.stderr.isatty():
            print(f"\rtiming: process {number} of {processes} ", end="", file=sys.stderr, flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(manifest["options"]["threads"]), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "check.py"), "--measure"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_CHILD_S)  # noqa: S603
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Stop(f"a process that timed the build ended with {done.returncode}: {last}")
        said = json.loads(done.stdout.splitlines()[-1])
        medians.append(float(said["median_ms"]))
        steady = steady and bool(said["steady"])
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
    logs = [math.log(value) for value in medians]
    mean = sum(logs) / processes
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / (processes - 1))
    half = _STUDENT[processes - 2] * spread / math.sqrt(processes)
    here = {"p50": math.exp(mean), "ci95": [math.exp(mean - half), math.exp(mean + half)], "processes": processes}
    found: dict[str, Any] = {
        "here": here,
        "report": None,
        "ratio": None,
        "inside": None,
        "slower": False,
        "steady": steady,
    }
    reported = (manifest.get("measured") or {}).get("latency_ms") or {}
    low, high = reported.get("ci95") or (None, None)
    if reported.get("p50") is None or low is None or high is None:
        return found | {"words": "the report has no interval of the median to compare with"}
    ratio = here["p50"] / reported["p50"]
    # Both are uncertain, independently of each other.
    width = math.hypot(half, math.log(high / low) / 2)
    bounds = [ratio * math.exp(-width), ratio * math.exp(width)]
    inside = bounds[0] <= 1 <= bounds[1] or (1 / (1 + _EVEN) <= bounds[0] and bounds[1] <= 1 + _EVEN)
    slower = not inside and ratio > 1
    where = (
        "inside the report's interval"
        if inside
        else f"outside the report's interval: {'slower' if slower else 'faster'}"
    )
    words = f"{where} (it takes {ratio:.3g} times as long, 95 % interval {bounds[0]:.3g} to {bounds[1]:.3g})"
    report = {"p50": reported["p50"], "ci95": [low, high]}
    told = {"report": report, "ratio": {"value": ratio, "ci95": bounds}, "inside": inside, "slower": slower}
    return found | told | {"words": words}


def measure(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """In a fresh process: load, warm up until two stretches are alike, and take samples."""
    import numpy as np

    model, batch = load(manifest), manifest["options"]["batch"]
    told = manifest.get("check") or {}
    known = samples(told["samples"])[0] if "samples" in told else {}
    feeds = {}
    for tensor in manifest["inputs"]:
        values = known.get(tensor["name"])
        if values is None:
            values = np.zeros([batch, *(max(size, 1) for size in tensor["shape"][1:])], tensor["dtype"])
        feeds[tensor["name"]] = np.ascontiguousarray(values[np.resize(np.arange(len(values)), batch)])
    wanted = set(known) or set(feeds)
    call = model["bind"]({name: values for name, values in feeds.items() if name in wanted})
    steady = _warm_up(call)
    taken: list[float] = []
    end = time.perf_counter() + _SAMPLE_S
    while len(taken) < _FEWEST or (len(taken) < _SAMPLES and time.perf_counter() < end):
        taken.append(_timed(call))
    return {"median_ms": _median(taken) * 1e3, "samples": len(taken), "steady": steady}


def _warm_up(call: Callable[[], None]) -> bool:
    """Call until the medians of two stretches differ by less than 3 %, for a second; whether they do."""
    end, before = time.perf_counter() + _WARM_S, math.inf
    while True:
        stretch: list[float] = []
        began = time.perf_counter()
        while len(stretch) < _STRETCH_CALLS or time.perf_counter() - began < _STRETCH_S:
            stretch.append(_timed(call))
        middle = _median(stretch)
        if abs(middle - before) <= _STEADY * middle:
            return True
        if time.perf_counter() > end:
            return False
        before = middle


def _timed(call: Callable[[], None]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def conditions(manifest: Mapping[str, Any], runtime_version: str) -> list[dict[str, str]]:
    """What is another here than where it was measured; what is not known on a side is empty there, and told too."""
    there = (manifest.get("measured") or {}).get("condition") or {}
    here = {
        "processor": _processor((manifest.get("check") or {}).get("arm_cores") or {}),
        "runtime_version": runtime_version,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": _power_mode(),
        "clocks": _clocks(),
        "kernel": platform.release(),
    }
    found = [
        {"name": name, "report": str(there[name]), "here": value}
        for name, value in here.items()
        if name in there and str(there[name]) != value
    ]
    cores, threads = len(os.sched_getaffinity(0)), manifest["options"]["threads"]
    if cores < threads:
        found.append({"name": "threads", "report": str(threads), "here": f"{cores} processors only"})
    if there.get("application"):
        found.append({"name": "application", "report": str(there["application"]), "here": ""})
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().replace(b"\0", b"\n").decode(errors="replace").strip()
    except OSError:
        return ""


def _processor(arm_cores: Mapping[str, str]) -> str:
    first: dict[str, str] = {}
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    implementer, part = first.get("CPU implementer", ""), first.get("CPU part", "")
    register = _text("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
    if not part and register:
        implementer, part = f"0x{int(register, 16) >> 24 & 0xFF:02x}", f"0x{int(register, 16) >> 4 & 0xFFF:03x}"
    arm = arm_cores.get(part, "") if implementer == "0x41" else ""
    return arm or first.get("model name") or first.get("Hardware") or first.get("Model", "")


def _power_mode() -> str:
    mode = re.search(r"\bpmode:(\d+)", _text("/var/lib/nvpmodel/status"))
    if mode is None:
        return _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    models = re.finditer(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", _text("/etc/nvpmodel.conf"))
    names = {int(model[1]): model[2] for model in models}
    return names.get(int(mode[1]), f"nvpmodel {int(mode[1])}")


def _clocks() -> str:
    low, high = (_text(f"/sys/devices/system/cpu/cpu0/cpufreq/scaling_{end}_freq") for end in ("min", "max"))
    if not (low.isdigit() and high.isdigit()):
        return ""
    one = int(low) // 1000, int(high) // 1000
    return f"pinned at {one[1]} MHz" if low == high else f"{one[0]} to {one[1]} MHz"


def in_words(found: Mapping[str, Any]) -> str:
    """For people."""
    lines = []
    for one in found["files"]:
        lines.append(f"file      {one['name']}: {'as sent' if one['same'] else one['why']}")
    for one in found["outputs"]:
        apart = "not comparable" if one["distance"] is None else f"{one['distance']:.2g} apart"
        lines.append(
            f"output    {one['name']}: {'as stored' if one['same'] else 'DIFFERENT'} ({apart}, {one['tolerance']:.2g} allowed)"
        )
    if found["time"] is not None:
        here, report = found["time"]["here"], found["time"]["report"]
        low, high = here["ci95"]
        lines.append(f"time      {here['p50']:.4g} ms ({low:.4g} to {high:.4g}) in {here['processes']} fresh processes")
        if report is not None:
            low, high = report["ci95"]
            lines.append(f"report    {report['p50']:.4g} ms ({low:.4g} to {high:.4g})")
            lines.append(f"verdict   {found['time']['words']}")
        if not found["time"]["steady"]:
            lines.append("note      the samples still drifted when the warm-up's time was over")
    for one in found["conditions"]:
        lines.append(
            f"differs   {one['name']}: {one['here'] or 'not known'} here, {one['report'] or 'not known'} in the report"
        )
    if not found["conditions"] and found["outputs"]:
        lines.append("differs   no condition that can be read here")
    lines += [f"note      {note}" for note in found["notes"]]
    return "\n".join([*lines, "It is what the report says." if found["holds"] else "It is not what the report says."])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
