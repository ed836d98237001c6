"""The clock work on a clock that only the timed call moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.measuring import timing
from fleetfit.agent.measuring.timing import block_size, call_without_pause, take_samples, take_until, time_once, warm_up

MS = 1_000_000


class Clock:
    """Time that passes only while a call runs."""

    def __init__(self) -> None:
        self.now = 0
        self.calls = 0

    def call(self, durations: Iterable[int] | int) -> Callable[[], None]:
        """A call that takes these durations one after another."""
        steps: Iterator[int] | None = None if isinstance(durations, int) else iter(durations)

        def call() -> None:
            self.calls += 1
            self.now += durations if isinstance(durations, int) else next(steps)  # type: ignore[arg-type]

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "_clock", lambda: clock.now)
    return clock


def test_one_call_is_timed(clock: Clock) -> None:
    assert time_once(clock.call(7 * MS)) == 7 * MS
    assert clock.calls == 1


def test_samples_are_what_the_calls_took_in_order(clock: Clock) -> None:
    assert take_samples(clock.call([5, 3, 9]), 3, 1000) == [5, 3, 9]


@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 1000), st.integers(0, 10))
def test_as_many_samples_as_fit_but_never_fewer_than_the_least(count: int, each: int, limit: int, least: int) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_clock", lambda: clock.now)
        samples = take_samples(clock.call(each), count, limit, least=least)
    most = max(count, least)
    fit = limit // each + 1  # the one that passes the limit is kept
    assert samples == [each] * min(most, max(fit, least))


def test_samples_are_taken_until_their_median_is_known(clock: Clock) -> None:
    assert take_until(clock.call(5), 10, 10_000, 0.01) == [5] * 10
    # The first ten leave the median open between 4 and 6; most that follow are 5.
    open_still = [4, 6] * 5
    samples = take_until(clock.call([*open_still, *[5] * 1000]), 10, 10_000, 0.01)
    assert samples[:10] == open_still and 20 <= len(samples) <= 100 and len(samples) % 10 == 0


def test_a_median_that_stays_open_ends_with_the_limit(clock: Clock) -> None:
    samples = take_until(clock.call([4, 8] * 1000), 10, 300, 0.01)
    assert 290 <= sum(samples) <= 300 + 8
    assert take_until(clock.call([4, 8] * 1000), 10, 300, 0.0) == [4, 8] * 5


@given(st.integers(1, 40), st.integers(1, 3000), st.integers(1, 60))
def test_of_a_long_run_every_so_many_are_kept(each: int, count: int, most: int) -> None:
    """Calls that take longer and longer: which were kept can be read from their times."""
    clock = Clock()
    told: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_clock", lambda: clock.now)
        patch.setattr(timing, "_CHUNK_NS", 50 * each)
        durations = [each + number for number in range(count)]
        kept, every, calls = call_without_pause(
            clock.call([*durations, 10**9]), sum(durations) + 1, told.append, most=most
        )
    assert calls == clock.calls == count + 1
    assert kept == [*durations, 10**9][::every] and len(kept) <= most
    assert every == 1 or 2 * len(kept) + 1 >= most
    assert told == sorted(told) and told[0] == 0 and told[-1] < 1


def test_a_steady_call_is_warm_after_two_stretches(clock: Clock) -> None:
    calls, steady = warm_up(clock.call(1 * MS), 1000 * MS)
    assert (steady, calls) == (True, clock.calls)
    assert clock.now == 2 * timing._STRETCH_NS


def test_a_call_that_is_slow_at_first_is_warmed_until_it_no_longer_changes(clock: Clock) -> None:
    falling = [max(20 - n // 4, 4) * MS for n in range(10_000)]
    calls, steady = warm_up(clock.call(falling), 5000 * MS)
    assert steady
    assert falling[calls - 1] == 4 * MS


def test_a_call_that_never_settles_is_given_up_at_the_limit(clock: Clock) -> None:
    calls, steady = warm_up(clock.call(MS * n for n in range(1, 10_000)), 500 * MS)
    assert (steady, calls) == (False, clock.calls)
    assert clock.now > 500 * MS


@pytest.mark.parametrize(("durations", "steady"), [([4000, 4000, 4000], True), ([9000, 6000, 4000], False)])
def test_a_very_slow_call_is_judged_by_its_last_two(clock: Clock, durations: list[int], steady: bool) -> None:
    assert warm_up(clock.call(value * MS for value in durations), 200 * MS) == (3, steady)


@pytest.mark.parametrize(
    ("each", "block", "size"),
    [(1 * MS, 12 * MS, 12), (5 * MS, 12 * MS, 3), (50 * MS, 12 * MS, 1), (1, 10, 10), (12 * MS, 12 * MS, 1)],
)
def test_a_block_lasts_at_least_as_long_as_asked(clock: Clock, each: int, block: int, size: int) -> None:
    assert block_size(clock.call(each), block) == size


def test_one_outlier_does_not_shrink_a_block(clock: Clock) -> None:
    assert block_size(clock.call([1 * MS, 8 * MS, 1 * MS, 1 * MS, 1 * MS]), 12 * MS) == 12


def test_a_call_too_quick_for_the_clock_still_has_a_block(clock: Clock) -> None:
    assert block_size(clock.call(0), 1000) == 1000


def test_real_time_is_counted_in_nanoseconds() -> None:
    samples = take_samples(lambda: None, 5, 10**9)
    assert len(samples) == 5 and all(sample >= 0 for sample in samples)
