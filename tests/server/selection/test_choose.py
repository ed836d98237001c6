from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts, LimitFacts, RecoveredFrom
from fleetfit.server.report.summary import EnergySummary, Figure
from fleetfit.server.selection.choose import Selection, select_variant

from .invented import candidate, control, device, job, original


def choose(of: DeviceFacts, **more: object) -> Selection:
    return select_variant(job(of, **more), of)  # type: ignore[arg-type]


def recipe_of(selection: Selection) -> str | None:
    return selection.selected.split("/")[0] if selection.selected else None


def reasons(selection: Selection, recipe: str) -> str:
    return "; ".join(selection.verdicts[f"{recipe}/1/1"].rejected_because)


def test_the_fastest_that_meets_the_limits() -> None:
    lab = device(
        original(),
        control(),
        candidate("slow", ratio=(1.5, 1.4, 1.6)),
        candidate("fast", ratio=(3.0, 2.9, 3.1), size=200),
        candidate("reckless", ratio=(5.0, 4.9, 5.1)),
        drops={"reckless": 1.3},
    )
    found = choose(lab)
    assert recipe_of(found) == "fast"
    assert found.closest is None
    assert found.why == (
        "fast runs 3.00 times as fast as the original (2.90 to 3.10), and the original is the best uncompressed build "
        "here; it is 80 % smaller (200 bytes instead of 1.00 kB) and loses 0.50 points of accuracy (0.30 to 0.70) against "
        "the original given the same training."
    )
    assert reasons(found, "slow") == "fast is faster: 3.00 times the original's speed against 1.50"
    assert reasons(found, "reckless") == (
        "it loses 1.30 points of accuracy (1.10 to 1.50) against the original given the same training, where 1 is allowed"
    )
    assert found.verdicts["fast/1/1"].rejected_because == ()
    assert not found.verdicts["reckless/1/1"].meets_limits


@pytest.mark.parametrize("ratio", [(1.2, 0.99, 1.4), (1.2, None, None), (1.0001, 1.0, 1.0002)])
def test_faster_is_only_what_has_its_whole_interval_above_1(ratio: tuple[float, float | None, float | None]) -> None:
    found = choose(device(original(), candidate("hopeful", ratio=ratio)))
    assert found.selected is None
    assert "compression made it no faster" in reasons(found, "hopeful")
    assert found.why.startswith("Keep the original")
    assert found.verdicts["hopeful/1/1"].meets_limits


def test_slower_is_said() -> None:
    found = choose(device(original(), candidate("int8-dynamic", ratio=(0.7, 0.6, 0.8))))
    assert "no faster but slower: it runs 0.700 times as fast as the original (0.600 to 0.800)" in reasons(
        found, "int8-dynamic"
    )


def test_what_an_uncompressed_build_gains_too_is_not_compressions_merit() -> None:
    lab = device(original(), control(ratio=(2.0, 1.9, 2.1)), candidate("pruned", ratio=(2.1, 2.0, 2.2)))
    found = choose(lab)
    assert found.selected is None
    assert "best uncompressed build" in reasons(found, "pruned")
    versus = found.verdicts["pruned/1/1"].versus_best_uncompressed
    assert versus is not None and versus.low is not None and versus.value == pytest.approx(1.05) and versus.low < 1
    better = choose(device(original(), control(ratio=(2.0, 1.9, 2.1)), candidate("pruned", ratio=(3.0, 2.9, 3.1))))
    assert recipe_of(better) == "pruned"
    assert (
        "3.00 times as fast as the original (2.90 to 3.10) and 1.50 times as fast as the best uncompressed"
        in better.why
    )


def test_ties_are_called_ties_and_the_smaller_is_taken() -> None:
    lab = device(
        original(),
        candidate("a", ratio=(3.00, 2.8, 3.2), size=400),
        candidate("b", ratio=(2.95, 2.75, 3.15), size=300),
        candidate("c", ratio=(1.5, 1.45, 1.55), size=100),
    )
    found = choose(lab)
    assert recipe_of(found) == "b"
    assert "In speed it ties with a." in found.why
    assert reasons(found, "a") == "it ties with b by latency, and b is smaller"
    assert found.verdicts["a/1/1"].tie_with == ("v-b",)
    assert found.verdicts["c/1/1"].tie_with == ()


def test_nothing_meets_the_limits() -> None:
    lab = device(
        original(), candidate("near"), candidate("far", ratio=(3, 2.9, 3.1)), drops={"near": 1.234, "far": 7.0}
    )
    found = choose(lab)
    assert (found.selected, found.closest) == (None, "near/1/1")
    assert found.why.startswith("Nothing meets the limits. near comes closest: it loses 1.23 points")
    assert "Allow it with --max-drop 1.24" in found.why
    relaxed = choose(lab, limits=LimitFacts(max_drop_points=1.24))
    assert recipe_of(relaxed) == "near"


def test_every_broken_limit_is_named_and_relaxing_as_told_works() -> None:
    limits = LimitFacts(max_drop_percent=0.1, p95_ms=0.5, max_peak_memory_bytes=900, max_size_bytes=400)
    lab = device(original(), candidate("only"))
    found = choose(lab, limits=limits)
    said = reasons(found, "only")
    for part in (
        "where 0.091 (0.1 % of 91.0) is allowed",
        "p95 is 1.00 ms, where 0.5 ms",
        "memory is 1.00 kB",
        "size is 500 bytes",
    ):
        assert part in said
    for option in ("--max-drop 0.55%", "--p95-ms 1", "--max-memory-mb 0.001", "--max-size-mb 0.0005"):
        assert option in found.why
    wide = LimitFacts(max_drop_percent=0.55, p95_ms=1, max_peak_memory_bytes=1000, max_size_bytes=500)
    assert recipe_of(choose(lab, limits=wide)) == "only"


def test_relaxing_is_not_promised_to_help_what_is_no_faster() -> None:
    lab = device(original(), candidate("only", ratio=(1.0, 0.9, 1.1)), drops={"only": 2.0})
    found = choose(lab)
    assert found.closest == "only/1/1"
    assert "is not enough: compression made it no faster" in found.why


def test_what_was_not_measured_meets_no_limit() -> None:
    lab = device(original(), candidate("unknown", p95=None, memory=None, size=None), drops={"unknown": None})  # type: ignore[dict-item]
    limits = LimitFacts(max_drop_points=50, p95_ms=1000, max_peak_memory_bytes=10**12, max_size_bytes=10**12)
    found = choose(lab, limits=limits)
    assert found.selected is None
    assert reasons(found, "unknown").count("was not measured") == 3
    assert "p95 is not known from 400 samples" in reasons(found, "unknown")
    assert "Allow it with" not in found.why


def test_a_loss_counts_by_its_point_estimate() -> None:
    lab = device(original(), candidate("edge"), drops={"edge": 1.0})
    assert recipe_of(choose(lab)) == "edge"
    assert "(0.80 to 1.20)" in choose(lab).why


@pytest.mark.parametrize(("objective", "winner"), [("latency", "fast"), ("size", "tiny"), ("memory", "lean")])
def test_objectives(objective: str, winner: str) -> None:
    lab = device(
        original(),
        candidate("fast", ratio=(4, 3.9, 4.1), size=600, memory=1500),
        candidate("tiny", ratio=(0.5, 0.4, 0.6), size=100, memory=1600),
        candidate("lean", ratio=(1.1, 1.05, 1.2), size=700, memory=800),
        candidate("bloated", ratio=(3.8, 3.7, 3.85), size=1001, memory=1990),
    )
    found = choose(lab, objective=objective)
    assert recipe_of(found) == winner
    if objective == "size":
        assert "0.500 times as fast as the original (0.400 to 0.600), which is slower" in found.why
        assert "compression made its size no smaller" in reasons(found, "bloated")
    if objective == "memory":
        assert "needs 800 bytes of memory at its peak instead of 2.00 kB" in found.why
        assert "compression made its peak memory no smaller" in reasons(found, "bloated")


def test_energy_without_a_meter_is_said() -> None:
    found = choose(device(original(), candidate("fast")), objective="energy")
    assert found.selected is None
    assert "fleetfit reads no meter on lab" in found.why and "by latency it would be fast" in found.why
    assert "energy was not measured" in reasons(found, "fast")


def test_an_emulated_device_chooses_only_on_request() -> None:
    lab = device(original(), candidate("fast"), emulated=True)
    found = choose(lab)
    assert found.selected is None
    assert "timings mean nothing" in found.why and "--accept-emulated" in found.why
    assert reasons(found, "fast")
    assert recipe_of(choose(lab, accept_emulated=True)) == "fast"


def test_failed_candidates_keep_their_reason() -> None:
    lab = device(original(), candidate("broken", state="failed", reason="the build needs more memory than is free"))
    found = choose(lab)
    assert found.selected is None
    assert reasons(found, "broken") == "the build needs more memory than is free"
    assert "No compressed variant could be measured here" in found.why
    gone = choose(device(original(state="failed", reason="lab was away"), candidate("fast", ratio=None)))
    assert "the original was not measured" in reasons(gone, "fast")


def test_a_benchmark_says_what_it_measured() -> None:
    found = choose(device(original()), kind="bench", metric="")
    assert (found.selected, found.closest) == (None, None)
    assert found.why == "Measured as it is, nothing is compressed: p50 2.00 ms, p95 1.00 ms."


def test_without_targets_the_choice_says_that_accuracy_is_unknown() -> None:
    lab = dataclasses.replace(device(original(), candidate("fast")), validation_drops=None)
    found = choose(lab, metric="", limits=LimitFacts())
    assert recipe_of(found) == "fast"
    assert "How accurate it is was not measured" in found.why


def test_what_its_user_trained_is_chosen_with_what_is_not_known_of_it() -> None:
    back = dataclasses.replace(candidate("own-recovered"), recovered=RecoveredFrom("r" * 10, "v-own", "f" * 64))
    assert "It was trained by its user, outside fleetfit, and whether" in choose(device(original(), back)).why
    users = dataclasses.replace(
        candidate("original-recovered", role="control", ratio=(1.0, 0.99, 1.01), accuracy=92.0),
        recovered=back.recovered,
    )
    found = device(original(), users, back)
    drops = found.validation_drops
    assert drops is not None
    drops = drops.model_copy(update={"references": {back.id: users.id}})
    why = choose(dataclasses.replace(found, validation_drops=drops)).why
    assert "against the original that its user trained" in why and "fair if both were trained alike" in why
    assert "is not known" not in why and "trained by" not in choose(device(original(), candidate("pruned"))).why


def test_an_unquiet_device_is_told() -> None:
    assert "throttled" in choose(device(original(), candidate("fast", trust="throttled"))).why


def test_figures_are_compared_within_one_condition() -> None:
    lab = device(
        original(threads=1),
        candidate("a", threads=1, ratio=(3, 2.9, 3.1), p50=2.0),
        original(threads=4),
        candidate("a", threads=4, ratio=(1.5, 1.4, 1.6), p50=1.0),
        candidate("b", threads=4, ratio=(1.2, 1.15, 1.25), p50=1.4),
    )
    found = choose(lab)
    assert found.selected == "a/4/1"
    assert "This is for 4 threads and batch 1, where a call is shortest." in found.why
    assert found.verdicts["a/1/1"].rejected_because == (
        "it is good, but a call of a with 4 threads and batch 1 is shorter",
    )
    assert found.verdicts["a/1/1"].tie_with == ()


# What follows holds for any figures.

_ratios = st.tuples(st.floats(0.2, 8), st.floats(0.001, 0.4)).map(
    lambda r: (r[0], r[0] * (1 - r[1]), r[0] * (1 + r[1]))
)


@st.composite
def devices(draw: st.DrawFn) -> tuple[DeviceFacts, JobFacts]:
    count = draw(st.integers(1, 6))
    recipes = [
        candidate(
            f"r{at}",
            ratio=draw(_ratios),
            size=draw(st.integers(1, 2000)),
            memory=draw(st.integers(1, 4000)),
            p95=draw(st.none() | st.floats(0.1, 5)),
            accuracy=draw(st.floats(0, 100)),
            test_accuracy=draw(st.none() | st.floats(1, 100)),
            state=draw(st.sampled_from(["measured", "measured", "measured", "failed"])),
        )
        for at in range(count)
    ]
    bases = [original(test_accuracy=draw(st.floats(1, 100)))]
    if draw(st.booleans()):
        bases.append(control(ratio=draw(_ratios), test_accuracy=draw(st.floats(1, 100))))
    drops = {f"r{at}": draw(st.floats(-2, 5)) for at in range(count)}
    lab = device(*bases, *recipes, drops=drops)
    limits = LimitFacts(
        max_drop_points=draw(st.none() | st.floats(0, 3)),
        p95_ms=draw(st.none() | st.floats(0.1, 5)),
        max_size_bytes=draw(st.none() | st.integers(1, 2000)),
    )
    return lab, job(lab, limits=limits, objective=draw(st.sampled_from(["latency", "size", "memory"])))


@given(devices(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_no_test_figure_ever_changes_a_selection(of: tuple[DeviceFacts, JobFacts], chance: random.Random) -> None:
    """All test figures are shuffled among the candidates and distorted: nothing that is chosen or said changes."""
    lab, asked = of
    figures = [c.test for c in lab.candidates]
    chance.shuffle(figures)
    losses = {c.id: Figure(value=chance.uniform(-9, 99), low=None, high=None) for c in lab.candidates}
    assert lab.validation_drops is not None
    shuffled = dataclasses.replace(
        lab,
        candidates=tuple(dataclasses.replace(c, test=t) for c, t in zip(lab.candidates, figures, strict=True)),
        test_drops=lab.validation_drops.model_copy(update={"by_candidate": losses}),
    )
    assert select_variant(asked, shuffled) == select_variant(asked, lab)


@given(devices(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_candidates_does_not_matter(of: tuple[DeviceFacts, JobFacts], chance: random.Random) -> None:
    lab, asked = of
    order: list[CandidateFacts] = list(lab.candidates)
    chance.shuffle(order)
    again = select_variant(asked, dataclasses.replace(lab, candidates=tuple(order)))
    found = select_variant(asked, lab)
    assert (again.selected, again.why, again.closest) == (found.selected, found.why, found.closest)
    assert again.verdicts == found.verdicts


@given(devices())
@settings(max_examples=150, deadline=None)
def test_what_is_chosen_holds_the_limits_and_all_others_have_a_reason(of: tuple[DeviceFacts, JobFacts]) -> None:
    lab, asked = of
    found = select_variant(asked, lab)
    assert found.why.endswith((".", "!")) and "\n" not in found.why
    for c in lab.candidates:
        verdict = found.verdicts[c.id]
        if c.id == found.selected:
            assert c.compressed and verdict.meets_limits and not verdict.rejected_because
            assert c.validation is not None
            if asked.limits.max_size_bytes is not None:
                assert c.size_bytes is not None and c.size_bytes <= asked.limits.max_size_bytes
            if asked.objective == "latency":
                for ratio in (verdict.versus_original, verdict.versus_best_uncompressed):
                    assert ratio is not None and ratio.low is not None and ratio.low > 1
        elif c.compressed:
            assert verdict.rejected_because and all(verdict.rejected_because)


def _metered(recipe: str, joules: tuple[float, float, float], **more: object) -> CandidateFacts:
    facts = original(**more) if recipe == "original" else candidate(recipe, **more)  # type: ignore[arg-type]
    assert facts.validation is not None
    value, low, high = joules
    energy = EnergySummary(
        joules=Figure(value=value, low=low, high=high),
        idle_watts=2.0, busy_watts=6.0, rounds=6, meter="rails", covers="module input (VDD_IN)",
    )  # fmt: skip
    return dataclasses.replace(facts, validation=facts.validation.model_copy(update={"energy": energy}))


def test_least_energy_is_chosen_where_it_is_measured() -> None:
    lab = device(
        _metered("original", (0.100, 0.098, 0.102)),
        _metered("fast", (0.060, 0.058, 0.062), ratio=(4.0, 3.9, 4.1)),
        _metered("thrifty", (0.030, 0.029, 0.031), ratio=(0.9, 0.88, 0.92)),
        _metered("hungry", (0.200, 0.19, 0.21)),
        _metered("unclear", (0.099, 0.08, 0.12)),
        candidate("unmetered"),
    )
    found = choose(lab, objective="energy")
    assert recipe_of(found) == "thrifty"
    assert "takes 30.0 mJ a call above rest instead of 100 mJ, 70 % less (module input (VDD_IN))" in found.why
    assert "thrifty takes less energy: 30.0 mJ a call against 60.0 mJ" in reasons(found, "fast")
    assert "compression made it take more energy" in reasons(found, "hungry")
    assert "compression saves no energy for certain" in reasons(found, "unclear")
    assert "its energy was not measured" in reasons(found, "unmetered")


def test_energy_that_cannot_be_told_from_nothing_chooses_nothing() -> None:
    lab = device(_metered("original", (0.1, 0.09, 0.11)), _metered("fast", (-0.01, -0.05, 0.03)))
    found = choose(lab, objective="energy")
    assert found.selected is None and "Keep the original" in found.why and "thriftier" in found.why


def test_a_device_without_a_meter_says_why_in_its_own_words() -> None:
    note = "energy was not measured: the counters in /sys/class/powercap are for root only"
    fast = candidate("fast")
    assert fast.validation is not None
    fast = dataclasses.replace(fast, validation=fast.validation.model_copy(update={"notes": [note]}))
    found = choose(device(original(), fast), objective="energy")
    assert "was not measured on lab: the counters in /sys/class/powercap are for root only" in found.why


def test_a_limit_on_p95_is_held_warm_where_the_warm_figure_counts() -> None:
    limits = LimitFacts(p95_ms=2.0)
    hot = candidate("hot", ratio=(3.0, 2.9, 3.1), p95=1.5, warm_p95=2.5)
    cool = candidate("cool", ratio=(2.0, 1.9, 2.1), p95=1.5, warm_p95=1.9)
    found = choose(device(original(), hot, cool), limits=limits)
    assert recipe_of(found) == "cool"
    assert reasons(found, "hot") == "its p95 on a warm device is 2.50 ms, where 2 ms is allowed"
    with_a_fan = [dataclasses.replace(c, warm_counts=False) for c in (hot, cool)]
    assert recipe_of(choose(device(original(), *with_a_fan), limits=limits)) == "hot"
