from __future__ import annotations

import itertools

import pytest

from fleetfit.server.report.build import build_report
from fleetfit.server.report.facts import DeviceFacts
from fleetfit.server.selection.choose import Selection, select_variant

from .invented import Ratio, candidate, device, job, original

ORT, VINO = "onnxruntime", "openvino"


def lab(*, openvino: Ratio = (2.0, 1.98, 2.02), there: Ratio = (1.5, 1.48, 1.52)) -> DeviceFacts:
    """A device with two runtimes: how fast the original is in the second, and the variant beside that original."""
    return device(
        original(runtime=ORT),
        original(runtime=VINO, beside=ORT, ratio=openvino, size=1100),
        candidate("pruned", runtime=ORT, ratio=(1.6, 1.58, 1.62)),
        candidate("pruned", runtime=VINO, beside=VINO, ratio=there, size=550),
    )


def choose(of: DeviceFacts, objective: str = "latency") -> Selection:
    return select_variant(job(of, objective=objective), of)


def test_a_variant_in_the_faster_runtime_is_chosen_and_compared_with_both_originals() -> None:
    found = choose(lab())
    assert found.selected == "pruned/1/1/openvino"
    assert found.why == (
        "pruned in openvino runs 1.50 times as fast as the original in the same runtime (1.48 to 1.52), and the original "
        "in openvino is the best uncompressed build here; it is 50 % smaller (550 bytes instead of 1.10 kB) and loses "
        "0.50 points of accuracy (0.30 to 0.70) against the original."
    )


def test_the_first_runtime_may_be_the_better_one() -> None:
    found = choose(lab(openvino=(0.5, 0.49, 0.51), there=(4.0, 3.9, 4.1)))
    assert found.selected == "pruned/1/1/openvino"
    assert "runs 4.00 times as fast as the original in the same runtime (3.90 to 4.10)" in found.why
    assert "2.00 times as fast as the best uncompressed build, original in onnxruntime (1.94 to 2.06)" in found.why


def test_what_another_runtime_alone_would_give_is_not_called_compression() -> None:
    found = choose(lab())
    verdict = found.verdicts["pruned/1/1/onnxruntime"]
    # 1.6 against the original in its own runtime, and 0.8 against the same original in the other.
    assert verdict.versus_original is not None and verdict.versus_best_uncompressed is not None
    assert verdict.versus_original.value == 1.6
    assert verdict.versus_best_uncompressed.value == pytest.approx(0.8)
    assert verdict.rejected_because == (
        "compression made it no faster but slower: it runs 0.800 times as fast as the best uncompressed build (0.787 to 0.813)",
    )


def test_where_compression_gains_nothing_the_better_runtime_is_named() -> None:
    found = choose(lab(there=(1.0, 0.98, 1.02)))
    assert found.selected is None
    assert found.why.startswith("Keep the original in openvino: no variant that meets the limits is faster here.")


def test_speeds_of_two_runtimes_are_told_in_the_first_ones_original() -> None:
    # Here the second runtime is no better for certain, so both variants are worth it.
    found = choose(lab(openvino=(1.0, 0.97, 1.03), there=(1.9, 1.88, 1.92)))
    assert found.selected == "pruned/1/1/openvino"
    assert found.verdicts["pruned/1/1/onnxruntime"].rejected_because == (
        "pruned in openvino is faster: 1.90 times the speed of the original in onnxruntime against 1.60",
    )


def test_ties_hold_within_a_runtime() -> None:
    found = choose(lab(openvino=(1.0, 0.9, 1.1), there=(1.6, 1.58, 1.62)))
    assert all(verdict.tie_with == () for name, verdict in found.verdicts.items() if name.startswith("pruned"))


def test_the_smallest_is_compared_with_the_original_of_its_runtime() -> None:
    found = choose(lab(), "size")
    assert found.selected == "pruned/1/1/onnxruntime"
    assert found.verdicts["pruned/1/1/openvino"].rejected_because == (
        "pruned in onnxruntime is smaller: 500 bytes against 550 bytes",
    )


def test_without_the_original_of_its_runtime_nothing_is_said_of_speed() -> None:
    found = choose(
        device(
            original(runtime=ORT),
            original(runtime=VINO, beside=ORT, state="failed", reason="it does not load"),
            candidate("pruned", runtime=VINO, beside=VINO),
        )
    )
    assert found.selected is None
    assert "there is nothing to compare it with" in found.why
    assert found.verdicts["pruned/1/1/openvino"].versus_best_uncompressed is None


def test_the_order_of_candidates_does_not_matter() -> None:
    here = lab()
    found = choose(here)
    for order in itertools.permutations(here.candidates):
        shuffled = device(*order)
        again = select_variant(job(shuffled), shuffled)
        assert (again.selected, again.why, again.verdicts) == (found.selected, found.why, found.verdicts)


def test_the_report_marks_the_one_candidate_that_was_chosen_and_says_what_originals_were_timed_beside() -> None:
    here = lab()
    report = build_report(job(here)).devices[0]
    assert [(c.runtime, c.role) for c in report.candidates if c.selected] == [(VINO, "recipe")]
    beside = [note for c in report.candidates for note in c.notes if note.startswith("timed beside")]
    assert beside == [
        "timed beside itself the original came out 1.00 times as fast (0.990 to 1.01), as it should",
        "timed beside the original in onnxruntime it came out 2.00 times as fast (1.98 to 2.02)",
    ]


def test_a_benchmark_tells_of_every_runtime() -> None:
    here = device(original(runtime=ORT, p50=4.0), original(runtime=VINO, beside=ORT, p50=2.0))
    why = select_variant(job(here, kind="bench"), here).why
    assert why == (
        "Measured as it is, nothing is compressed: onnxruntime p50 4.00 ms, p95 1.00 ms; openvino p50 2.00 ms, p95 1.00 ms."
    )
