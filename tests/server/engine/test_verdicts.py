from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.server.engine.verdicts import (
    FEWEST,
    Found,
    Past,
    Verdict,
    described_change,
    expect,
    is_due,
    judge,
    sets_aside,
)

HOUR = 3_600_000
times = st.floats(1e-3, 1e4)
histories = st.lists(times, max_size=40)
verdicts = st.sampled_from(Verdict)


def quiet(p50: float, half: float = 0.01) -> Found:
    """A check that knows its figure within `half`, as a share, either way."""
    return Found(p50_ms=p50, low_ms=p50 / (1 + half), high_ms=p50 * (1 + half))


def around(centre: float, count: int, spread: float = 0.01, seed: int = 1) -> list[float]:
    chosen = random.Random(seed)
    return [centre * math.exp(chosen.gauss(0, spread)) for _ in range(count)]


@given(p50=times, history=st.lists(times, max_size=FEWEST - 1))
def test_a_few_checks_only_build_a_history(p50: float, history: list[float]) -> None:
    found = judge(quiet(p50), history)
    assert found.verdict is Verdict.NEW and found.expected is None
    assert f"check {len(history) + 1} of the {FEWEST}" in found.why


@given(p50=times, history=histories, trust=st.sampled_from(["clean", "noisy", "throttled"]))
def test_wrong_outputs_fail_whatever_else_was_seen(p50: float, history: list[float], trust: str) -> None:
    found = judge(Found(p50, p50, p50, wrong="its outputs are wrong", trust=trust), history)
    assert found.verdict is Verdict.FAILED and found.why == "its outputs are wrong"
    assert sets_aside(found, wrong=True, earlier=[])


@given(p50=times, history=histories, trust=st.sampled_from(["noisy", "throttled"]))
def test_a_disturbed_check_says_nothing(p50: float, history: list[float], trust: str) -> None:
    assert judge(Found(p50, p50, p50, trust=trust), history).verdict is Verdict.UNCLEAR


@given(p50=times, half=st.floats(0.21, 10), history=histories)
def test_a_check_that_does_not_know_its_own_figure_says_nothing(p50: float, half: float, history: list[float]) -> None:
    assert judge(quiet(p50, half), history).verdict is Verdict.UNCLEAR
    assert judge(Found(p50_ms=p50), history).verdict is Verdict.UNCLEAR


@given(history=st.lists(times, min_size=FEWEST, max_size=40), p50=times, factor=st.floats(1e-2, 1e2))
def test_only_ratios_count(history: list[float], p50: float, factor: float) -> None:
    here, there = (judge(quiet(p50 * f), [value * f for value in history]) for f in (1.0, factor))
    low, high = here.expected or (0.0, 0.0)
    # At the very bound rounding decides.
    if all(abs(math.log(p50 / bound)) > 1e-6 for bound in (low, high)):
        assert here.verdict is there.verdict


@given(history=st.lists(times, min_size=FEWEST, max_size=40), p50=times, slower=st.floats(1, 100))
def test_slower_is_never_better(history: list[float], p50: float, slower: float) -> None:
    order = [Verdict.PASSED, Verdict.UNCLEAR, Verdict.FAILED]
    one, other = (order.index(judge(quiet(value), history).verdict) for value in (p50, p50 * slower))
    assert one <= other


@given(history=st.lists(st.floats(0.995, 1.005), min_size=FEWEST, max_size=40), slower=st.floats(0.5, 1.05))
def test_what_a_steady_device_may_lose_is_not_nothing(history: list[float], slower: float) -> None:
    """A history that happens to be narrower than measuring is must not quarantine for 5 %."""
    assert judge(quiet(0.995 * slower), history).verdict is Verdict.PASSED


@pytest.mark.parametrize("count", [FEWEST, 10, 40])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.03])
def test_a_device_that_lost_a_quarter_of_its_speed_fails(count: int, spread: float) -> None:
    for seed in range(20):
        found = judge(quiet(1 / 0.75), around(1.0, count, spread, seed))
        if (found.expected or (0, math.inf))[1] < 1.32:
            assert found.verdict is Verdict.FAILED and "% slower than before" in found.why
        else:
            assert spread == 0.03 and count == FEWEST, "only a short and noisy history may hide it"


def test_a_well_device_seldom_fails_and_hardly_ever_twice() -> None:
    """The share of false alarms is the one that the interval promises, however long the history and wide the spread is."""
    chosen, alarms, twice, checks = random.Random(7), 0, 0, 6_000
    for number in range(checks):
        count, spread = chosen.choice((FEWEST, 8, 20, 60)), chosen.choice((0.02, 0.05, 0.1))
        history = around(1.0, count, spread, seed=number)
        first, second = (judge(quiet(math.exp(chosen.gauss(0, spread))), history) for _ in range(2))
        alarms += first.verdict is Verdict.FAILED
        twice += first.verdict is second.verdict is Verdict.FAILED
    assert 0.002 < alarms / checks < 0.008, "one in two hundred"
    assert twice / checks < 0.001


def test_a_faster_device_passes_and_it_is_said() -> None:
    found = judge(quiet(0.5), around(1.0, 10))
    assert found.verdict is Verdict.PASSED and found.why.startswith("it is faster than before: a call takes 0.500 ms")


def test_seeming_slower_is_not_being_slower() -> None:
    history = around(1.0, 20)
    high = (expect(history) or (0, 0))[1]
    assert judge(quiet(high * 1.01, 0.15), history).verdict is Verdict.UNCLEAR
    assert judge(quiet(high * 1.01, 0.01), history).verdict is Verdict.FAILED


def test_what_could_not_be_measured_fails_unless_it_says_nothing_about_the_device() -> None:
    crashed = judge(Found(failure="the golden model could not be measured: it crashed"), [])
    assert crashed.verdict is Verdict.FAILED and not sets_aside(crashed, wrong=False, earlier=[])
    assert judge(Found(failure="the disk is full", excused=True), []).verdict is Verdict.UNCLEAR


@given(earlier=st.lists(verdicts, max_size=6))
def test_slowness_is_confirmed_before_a_device_is_set_aside(earlier: list[Verdict]) -> None:
    past = [Past(verdict, 0) for verdict in earlier]
    failed = judge(quiet(2.0), around(1.0, 10))
    said = [verdict for verdict in earlier if verdict is not Verdict.UNCLEAR]
    assert sets_aside(failed, wrong=False, earlier=past) is (said[:1] == [Verdict.FAILED])
    assert not sets_aside(judge(quiet(1.0), around(1.0, 10)), wrong=False, earlier=past)


pasts = st.lists(st.builds(Past, verdicts, st.integers(0, 10 * HOUR)), max_size=4)


@given(past=pasts, now=st.integers(0, 10 * HOUR), aside=st.booleans())
def test_who_asks_gets_a_check_and_who_wants_none_gets_only_those_that_must_be_repeated(
    past: list[Past], now: int, aside: bool
) -> None:
    assert is_due(past, now, every_ms=0, wanted=True, set_aside=aside)
    if not past or past[0].verdict in (Verdict.PASSED, Verdict.NEW):
        assert not is_due(past, now, every_ms=0, wanted=False, set_aside=aside)


@given(past=pasts, aside=st.booleans(), every=st.integers(1, 10 * HOUR))
def test_no_device_is_forgotten_and_none_is_checked_without_end(past: list[Past], aside: bool, every: int) -> None:
    newest = max((one.at_ms for one in past), default=0)
    assert is_due(past, newest + every, every_ms=every, wanted=False, set_aside=aside)
    # However they end, two checks in a row are enough for the moment.
    for last in Verdict:
        again = [Past(last, newest), Past(last, newest), *past]
        settled = aside or last is not Verdict.FAILED
        if settled:
            assert not is_due(again, newest, every_ms=every, wanted=False, set_aside=aside)


def test_when_checks_follow_each_other() -> None:
    def waits(*past: Verdict, aside: bool = False) -> float:
        """Hours until the next check is due, to the minute."""
        known = [Past(verdict, 0) for verdict in past]
        due = (m for m in range(24 * 60) if is_due(known, m * 60_000, every_ms=6 * HOUR, wanted=False, set_aside=aside))
        return next(due) / 60

    assert waits() == 0
    assert waits(Verdict.PASSED) == 6
    assert waits(Verdict.NEW) == 1, "a history is built in hours, not days"
    assert waits(Verdict.FAILED) == 0, "at once"
    assert waits(Verdict.FAILED, Verdict.FAILED, aside=True) == 0.25
    assert waits(Verdict.UNCLEAR, Verdict.PASSED) == 0
    assert waits(Verdict.UNCLEAR, Verdict.UNCLEAR) == 0.25


conditions = st.dictionaries(
    st.sampled_from(["power_mode", "governor", "kernel", "clocks"]), st.text("abc", max_size=3)
)


@given(before=conditions, after=conditions)
def test_a_change_names_what_changed(before: dict[str, str], after: dict[str, str]) -> None:
    said = described_change(before, after)
    same = all(before.get(name, "") == after.get(name, "") for name in {*before, *after})
    assert bool(said) is not same


def test_a_new_power_mode_reads_as_people_say_it() -> None:
    before = {"power_mode": "15W", "governor": "schedutil", "kernel": "5.15"}
    assert described_change(before, before | {"power_mode": "MAXN"}) == "15W -> MAXN"
    assert (
        described_change(before, before | {"power_mode": "MAXN", "kernel": "6.8"}) == "15W -> MAXN, kernel 5.15 -> 6.8"
    )
    bare = {"power_mode": "powersave", "governor": "powersave"}
    assert described_change(bare, dict.fromkeys(bare, "performance")) == "powersave -> performance"
    assert described_change({}, {"application": "stopped"}) == "application none -> stopped"
