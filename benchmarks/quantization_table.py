"""Every kind of quantization of one small convolutional network on Fashion-MNIST: bytes, accuracy, integers, latency.

`python -m benchmarks.quantization_builds` makes the builds (which may run beside other work), and this times them: on a quiet
machine, in ONNX Runtime with one thread and a batch of one, all in one process in blocks whose order is drawn anew for each
round. What is missing is made first. One network and one training seed: intervals of drops are over the test pictures, paired, and
those of ratios over rounds.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict

import torch

from benchmarks.harness import Outcome, run, versions
from benchmarks.interleaved import blocks_in_turn, times_as_fast
from benchmarks.quantization_builds import FULL, QUICK, Work, entries, say
from fleetfit.compress.quantization.error import output_errors
from fleetfit.core.statistics import paired_drop

MOST_DROP = 1.0
CLAIM = (
    f"Whatever the calibration, and with 7 or 8 bits for weights, static int8 costs a small convolutional network at most "
    f"{MOST_DROP:g} point of accuracy, puts all its convolutions and products on integers, and is faster than single floats, half "
    "floats, 4-bit weights and dynamic int8 (whole 95 % intervals; one network; the bar counts on a processor with AVX-512 VNNI)."
)


def quantization_table(quick: bool) -> Outcome:
    """Judge and time every build; `--quick` takes few builds of a hardly trained network."""
    torch.set_num_threads(1)
    settings = QUICK if quick else FULL
    work, wanted = Work(settings), entries(settings)
    lines = {name: work.made(name, entry) for name, entry in wanted.items()}
    expected = work.outputs(lines["fp32"])
    for line in lines.values():
        if line["control"] == "fp32" and line["kind"] not in ("float", "control"):
            line["output_error"] = max(output_errors(expected, work.outputs(line)).values())
        line["drop"] = asdict(paired_drop("accuracy", work.right(line), work.right(lines[line["control"]])))
    builds = [("onnxruntime", work.content(line)) for line in lines.values()]
    blocks = dict(zip(lines, blocks_in_turn(builds, work.feeds, settings.rounds, say), strict=True))
    for name, line in lines.items():
        line["milliseconds"] = statistics.median(blocks[name]) / 1e6
        line["times_as_fast"] = times_as_fast(blocks["fp32"], blocks[name])
    static = [line for line in lines.values() if line["kind"] == "static"]
    # Signed activations and mixtures are shown, and no part of either side.
    others = [line for line in lines.values() if line["kind"] not in ("static", "signed", "mixed")]
    compared = {
        "static_builds": len(static),
        "most_drop": max(line["drop"]["high"] for line in static),
        "all_on_integers": all(line["integer_operators"] == line["operators"] for line in static),
        "slowest_static": min(line["times_as_fast"]["low"] for line in static),
        "fastest_other": max(line["times_as_fast"]["high"] for line in others),
    }
    figures = {
        "settings": asdict(settings),
        "parameters": work.original.parameters_count(),
        "macs": work.original.macs(),
        "test_pictures": len(work.right(lines["fp32"])),
        "compared": compared,
        "builds": [{name: value for name, value in line.items() if name != "stem"} for line in lines.values()],
        "versions": versions("onnx"),
    }
    holds = (
        compared["most_drop"] <= MOST_DROP
        and compared["all_on_integers"]
        and compared["slowest_static"] > max(1.0, compared["fastest_other"])
    )
    return CLAIM, figures, holds


if __name__ == "__main__":
    sys.exit(run("quantization_table", quantization_table))
