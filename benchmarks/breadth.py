"""How many architectures go through everything: relayered, pruned, factorized, exported, quantized, run, compared."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fleetfit
from benchmarks.architectures import Architecture, architectures
from benchmarks.harness import RESULTS, machine
from fleetfit.compress.exporter import OnnxSession, export_onnx
from fleetfit.compress.intake.proof import difference
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.passes.activation_pruning import ActivationPruning
from fleetfit.compress.passes.base import Arrays, PassContext
from fleetfit.compress.passes.low_rank import LowRank
from fleetfit.compress.passes.quantize import Quantize
from fleetfit.core.errors import FleetfitError

STAGES = ("export", "relayer", "recognised", "prune", "low_rank", "onnx", "quantize")
LIMIT_S = 240
BATCHES = (2, 3)
SEEDS = (101, 102, 103)
EQUAL = 1e-5
"""Relayered against the original."""
SAME_IN_ORT = 1e-3
"""ONNX Runtime against the compressed PyTorch model, relative to the largest value."""
INT8_ERROR = 0.2
"""Relative error (root of summed squares) that eight bits with random weights explain."""
FEWER_MACS = 0.75
RATIOS = (0.25, 0.5, 0.75)


class Wrong(Exception):
    """Something computes what it should not."""


def examine(one: Architecture, folder: Path, last: str = STAGES[-1]) -> dict[str, Any]:
    """Take one architecture through all stages up to `last`. Each stage's entry is `ok`, `refused: ...` or `wrong: ...`."""
    result: dict[str, Any] = {"name": one.name, "source": one.source, "tags": list(one.tags), "stages": {}}
    stages: dict[str, str] = result["stages"]
    original = one.model()
    state: dict[str, Any] = {}

    def flat(value: Any) -> list[torch.Tensor]:
        return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]

    def named(inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        return dict(zip((tensor.name for tensor in state["model"].inputs), inputs, strict=True))

    def batches() -> list[tuple[torch.Tensor, ...]]:
        return [one.inputs(count, seed) for seed in SEEDS for count in BATCHES]

    def export() -> str:
        state["path"] = fleetfit.export(original, one.inputs(2, 1), folder / "model.pt2")
        return "ok"

    def relayer() -> str:
        model = state["model"] = load_pt2(state["path"])
        result["parameters"], result["macs"] = model.parameters_count(), model.macs()
        if not model.dynamic_batch:
            return f"refused: fixed batch; {'; '.join(model.notes)[:300]}"
        with torch.no_grad():
            for inputs in batches():
                pairs = zip(flat(original(*inputs)), model.call(named(inputs)).values(), strict=True)
                largest = max(difference(wanted, got) for wanted, got in pairs)
                if largest > EQUAL:
                    raise Wrong(f"differs from the original by {largest:.2g}")
        return "ok"

    def recognised() -> str:
        share = result["recognised_share"] = round(state["model"].recognised_share(), 4)
        return "ok" if share >= 0.9 else f"refused: {share:.0%} of the parameters are in recognised layers"

    def context() -> PassContext:
        arrays = Arrays({name: value.numpy() for name, value in named(one.inputs(8, 5)).items()}, None)
        return PassContext(arrays, arrays, None, "", "", 0, lambda fraction, activity: None)

    def prune() -> str:
        whole, left, notes = state["model"], 1.0, []
        for ratio in RATIOS:
            smaller = whole.clone()
            notes = ActivationPruning(ratio=ratio).apply(smaller, context()).notes
            left = smaller.macs() / max(whole.macs(), 1)
            if left <= FEWER_MACS:
                break
        state["model"] = smaller
        result["macs_left"], result["ratio"] = round(left, 4), ratio
        result["locked"] = dict(Counter(n.split(": ", 1)[1] for n in notes if " stays whole: " in n).most_common(4))
        return "ok" if left <= FEWER_MACS else f"refused: {left:.0%} of the MACs left; {list(result['locked'])}"

    def low_rank() -> str:
        smaller = state["model"].clone()
        before = smaller.parameters_count()
        notes = LowRank(ratio=0.25, layers="all", method="channel").apply(smaller, context()).notes
        if smaller.parameters_count() >= before:
            return f"refused: no layer was split; {notes[:2]}"
        state["model"] = smaller
        return "ok"

    def run_onnx(content: bytes, error: Callable[[Any, Any], float], most: float) -> float:
        session, largest = OnnxSession(content), 0.0
        with torch.no_grad():
            for inputs in batches():
                arrays = named(inputs)
                wanted = state["model"].call(arrays)
                got = session.run({n: v.numpy() for n, v in arrays.items() if n in session.input_names})
                for name, value in wanted.items():
                    if value.shape != got[name].shape:
                        raise Wrong(f"{name} has another shape in ONNX Runtime")
                    largest = max(largest, error(value.double().numpy(), got[name].astype(np.float64)))
        if not largest <= most:
            raise Wrong(f"differs by {largest:.2g} where {most} is allowed")
        return largest

    def onnx() -> str:
        state["onnx"] = export_onnx(state["model"])
        result["onnx_difference"] = run_onnx(
            state["onnx"], lambda a, b: float(np.abs(a - b).max() / max(1.0, np.abs(a).max())), SAME_IN_ORT
        )
        return "ok"

    def quantize() -> str:
        tried = {}
        for mode in ("static", "dynamic"):
            try:
                # Calibrated on inputs of the same kind; 8 bits of weights, since the machine that checks counts in them.
                build = Quantize(mode=mode, samples=8).build(state["onnx"], context())  # type: ignore[arg-type]
                result[f"int8_{mode}_error"] = round(
                    run_onnx(
                        build.content,
                        lambda a, b: float(np.linalg.norm(a - b) / (np.linalg.norm(a) or 1.0)),
                        INT8_ERROR,
                    ),
                    4,
                )
                result[f"int8_{mode}_operators"] = [build.integer_operators, build.total_operators]
                tried[mode] = "ok"
            except FleetfitError as error:
                tried[mode] = f"refused: {error.message[:300]}"
            except Wrong as error:
                tried[mode] = f"wrong: {error}"
        result["int8"] = tried
        return "ok" if "ok" in tried.values() else "; ".join(f"{text} ({mode})" for mode, text in tried.items())

    # What must have gone well before.
    needed = {"relayer": "export", "recognised": "relayer", "prune": "relayer", "low_rank": "relayer"}
    needed |= {"onnx": "relayer", "quantize": "onnx"}
    work = dict(zip(STAGES, (export, relayer, recognised, prune, low_rank, onnx, quantize), strict=True))
    for stage in STAGES[: STAGES.index(last) + 1]:
        before = stages.get(needed.get(stage, ""), "ok")
        if before != "ok" and (stage != "recognised" or "model" not in state):
            stages[stage] = f"not reached: {needed[stage]} failed"
            continue
        began = time.perf_counter()
        try:
            stages[stage] = work[stage]()
        except Wrong as error:
            stages[stage] = f"wrong: {error}"
        except FleetfitError as error:
            private = f" [{error.private[:300]}]" if getattr(error, "private", "") else ""
            kind = "wrong" if type(error).__name__ == "InternalError" else "refused"
            stages[stage] = f"{kind}: {error.message[:400]}{private}"
        except Exception as error:  # a crash of ours is a result too
            stages[stage] = f"wrong: {type(error).__name__}: {str(error)[:400]}"
        result.setdefault("seconds", {})[stage] = round(time.perf_counter() - began, 2)
    return result


def _child(name: str, last: str, answers: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers.send(examine(architectures()[name], Path(folder), last))


def _in_a_child(name: str, last: str) -> dict[str, Any]:
    # Forked, not started anew: importing and warming up takes longer than most networks. Torch runs on one thread here.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(name, last, theirs))
    child.start()
    theirs.close()
    problem = f"refused: took more than {LIMIT_S} s"
    try:
        if ours.poll(LIMIT_S):
            found: dict[str, Any] = ours.recv()
            return found
    except EOFError:
        child.join()
        problem = f"wrong: the process ended with {child.exitcode}"
    finally:
        child.kill()
        child.join()
    return {"name": name, "stages": dict.fromkeys(STAGES, problem)}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts for each stage, and what failed with its reason. A stage not reached counts as failed."""
    counts: dict[str, dict[str, int]] = {}
    failures: dict[str, dict[str, str]] = {}
    for stage in STAGES:
        texts = {result["name"]: result["stages"].get(stage, "not run") for result in results}
        kinds = Counter(text.split(":")[0] for text in texts.values())
        counts[stage] = {kind: kinds[kind] for kind in ("ok", "refused", "wrong", "not reached", "not run")}
        failures[stage] = {name: text for name, text in texts.items() if text not in ("ok", "not run")}
    everything = sum(all(result["stages"].get(stage) == "ok" for stage in STAGES) for result in results)
    return {
        "architectures": len(results),
        "all_stages_ok": everything,
        "by_source": dict(Counter(result.get("source", "unknown") for result in results)),
        "by_tag": dict(Counter(tag for result in results for tag in result.get("tags", ()))),
        "stages": counts,
        "failures": failures,
    }


def _mixed(known: dict[str, Architecture]) -> list[str]:
    """Names in an order that takes from every source in turn, so that a run cut short shows some of each."""
    sources: dict[str, list[str]] = {}
    for one in known.values():
        sources.setdefault(one.source, []).append(one.name)
    rows = itertools.zip_longest(*sources.values())
    return [name for row in rows for name in row if name is not None]


def main() -> int:
    """Run what is asked for; results are appended to a file, and what is in it already is not run again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.breadth", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures")
    parser.add_argument("--lines", type=Path, help="a file of JSON lines to go on with")
    parser.add_argument(
        "--out", type=Path, help="where the summary goes; benchmarks/results/breadth.json for a full run"
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="start no other architecture after so long")
    parser.add_argument(
        "--until", choices=STAGES, default=STAGES[-1], help="the last stage; a trial, without a summary"
    )
    options = parser.parse_args()
    names = options.only or _mixed(architectures())
    results: dict[str, dict[str, Any]] = {}
    if options.lines and options.lines.exists():
        lines = (json.loads(line) for line in options.lines.read_text().splitlines())
        results = {one["name"]: one for one in lines if one["name"] in names}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # Warm: what is imported and compiled once is not each network's time.
        examine(architectures()["mlp_regressor"], Path(folder), options.until)
    began = time.monotonic()
    for name in names:
        if options.until in results.get(name, {}).get("stages", {}) or time.monotonic() - began > options.seconds:
            continue
        start = time.monotonic()
        results[name] = _in_a_child(name, options.until)
        bad = {stage: text[:160] for stage, text in results[name]["stages"].items() if text != "ok"}
        print(f"{name} ({time.monotonic() - start:.0f} s): {bad or 'ok'}", file=sys.stderr, flush=True)
        if options.lines:
            with options.lines.open("a") as file:
                file.write(json.dumps(results[name]) + "\n")
    if options.until != STAGES[-1]:
        return 0
    found = summary(list(results.values()))
    claim = (
        "At least 98 % are relayered and quantized, 92 % lose a quarter of their MACs, and nothing is wrong silently"
    )
    total = max(len(results), 1)
    not_run = [name for name in names if name not in results]
    # A run that was cut short shows what it shows, and proves no share of all.
    holds = (
        not (options.only or not_run)
        and all(found["stages"][stage]["ok"] / total >= 0.98 for stage in ("relayer", "recognised", "onnx", "quantize"))
        and found["stages"]["prune"]["ok"] / total >= 0.92
        and not any(counts["wrong"] for counts in found["stages"].values())
    )
    where = machine()
    where["versions"] |= {name: version(name) for name in ("pytorchcv", "transformers")}
    written = {
        "claim": claim,
        "figures": found,
        "holds": holds,
        "machine": where,
        "not_run": not_run,
        "each": list(results.values()),
    }
    target = options.out or (None if options.only else RESULTS / "breadth.json")
    if target:
        target.write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(found["stages"], indent=1), f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
