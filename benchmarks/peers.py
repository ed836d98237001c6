"""Against the peers, side by side in one run: a residual network on Fashion-MNIST, compressed by each and timed in turn.

`python -m benchmarks.peers_builds` makes the builds (which may run beside other work), and this times them: on a quiet machine,
with one thread and a batch of one, all in one process in blocks whose order is drawn anew for each round. What is missing is made
first. Ratios are to the original in ONNX Runtime, of the blocks of the same round; builds for OpenVINO are held against the
original in OpenVINO too. Configurations were chosen on validation; the test split is read here, once for each build.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np

from benchmarks.harness import Outcome, run, versions
from benchmarks.interleaved import blocks_in_turn, times_as_fast
from benchmarks.peers_builds import ENTRIES, INPUT, MOST_DROP, Work, accuracy, made
from benchmarks.peers_original import FULL, QUICK, say

LEAST_OVER_DEFAULTS, LEAST_OVER_EXPERT = 1.6, 1.05
LEAST_ACCURACY = 92.5
CLAIM = (
    f"On a residual network of at least {LEAST_ACCURACY} % and for at most {MOST_DROP:g} point, fleetfit's build is at least "
    f"{LEAST_OVER_DEFAULTS} times as fast as the best peer's at its defaults and {LEAST_OVER_EXPERT} times as what an expert "
    "reaches by hand with them, and not bigger than the smallest of them (median of five compression seeds; the bar counts on a "
    "processor with AVX-512 VNNI)."
)


def peers(quick: bool) -> Outcome:
    """Time all builds in turn; `--quick` takes a hardly trained network and one seed."""
    settings = QUICK if quick else FULL
    work, lines = made(settings)
    built = [line for line in lines if "error" not in line]
    test = accuracy(work.onnx, "onnxruntime", work.data.test)
    for line in built:
        content = (work.folder / line["file"]).read_bytes()
        line["test_drop"] = test - accuracy(content, line["runtime"], work.data.test)
    _time(work, built)
    summary = {name: found for name in ENTRIES if (found := _summary([x for x in built if x["entry"] == name]))}
    compared = _compared(summary)
    figures = {
        "parameters": sum(value.numel() for value in work.model.parameters()),
        "validation_accuracy": work.validation,
        "test_accuracy": test,
        "seeds": settings.seeds,
        "tuning_epochs": settings.tuning_epochs,
        "compared": compared,
        "summary": summary,
        "not_run": [line for line in lines if "error" in line],
        "runs": built,
        "versions": versions("torch-pruning", "nncf", "openvino", "olive-ai", "onnx"),
    }
    holds = (
        test >= LEAST_ACCURACY
        and compared["drop"] <= MOST_DROP
        and compared["over_best_default"] >= LEAST_OVER_DEFAULTS
        and compared["over_expert"] >= LEAST_OVER_EXPERT
        and compared["bytes_over_smallest"] <= 1
    )
    return CLAIM, figures, holds


def _time(work: Work, lines: list[dict[str, Any]]) -> None:
    """Put the medians of every build's blocks into its line, and its ratios to the originals with their interval."""
    feeds = {INPUT: np.ascontiguousarray(work.data.validation.images[:1])}
    builds = [(line["runtime"], (work.folder / line["file"]).read_bytes()) for line in lines]
    blocks = blocks_in_turn(builds, feeds, work.settings.rounds, say)
    rows = {line["entry"]: found for line, found in zip(lines, blocks, strict=True)}
    for line, found in zip(lines, blocks, strict=True):
        line["milliseconds"] = statistics.median(found) / 1e6
        line["times_as_fast"] = times_as_fast(rows["original"], found)
        if line["runtime"] == "openvino" and "original, OpenVINO" in rows:
            line["times_as_fast_in_openvino"] = times_as_fast(rows["original, OpenVINO"], found)


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The median over seeds, and least and most."""
    if not lines:
        return None
    found: dict[str, Any] = {"kind": lines[0]["kind"], "runtime": lines[0]["runtime"], "how": lines[0]["how"]}
    for name in ("bytes", "drop", "test_drop", "milliseconds"):
        found[name] = _middle([line[name] for line in lines])
    for name in ("times_as_fast", "times_as_fast_in_openvino"):
        if name in lines[0]:
            found[name] = _middle([line[name]["value"] for line in lines])
    return found


def _middle(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _compared(summary: dict[str, Any]) -> dict[str, Any]:
    """Ours against the best peer at its defaults, against the expert, and against the smallest within the same drop."""

    def median(name: str, what: str) -> float:
        return float(summary[name][what]["median"]) if name in summary else float("nan")

    within = [name for name in summary if median(name, "test_drop") <= MOST_DROP]
    defaults = [name for name in within if summary[name]["kind"] == "default"]
    # In ONNX Runtime: what runs in OpenVINO alone is shown beside it, and compared apart.
    served = [name for name in defaults if summary[name]["runtime"] == "onnxruntime"]
    best = max(served, key=lambda name: median(name, "times_as_fast"), default="")
    anywhere = max(defaults, key=lambda name: median(name, "times_as_fast"), default="")
    peers_within = [name for name in within if summary[name]["kind"] in ("default", "advised", "expert")]
    smallest = min(peers_within, key=lambda name: median(name, "bytes"), default="")
    ours = median("fleetfit", "times_as_fast")
    return {
        "drop": median("fleetfit", "test_drop"),
        "times_as_fast": ours,
        "best_default": best,
        "over_best_default": ours / median(best, "times_as_fast"),
        "best_default_in_any_runtime": anywhere,
        "over_best_default_in_any_runtime": ours / median(anywhere, "times_as_fast"),
        "over_expert": ours / median("expert", "times_as_fast"),
        "smallest": smallest,
        "bytes_over_smallest": median("fleetfit", "bytes") / median(smallest, "bytes"),
    }


if __name__ == "__main__":
    sys.exit(run("peers", peers))
