from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.measuring.ladder import MOST_BATCH, batch_steps, grows_no_longer, instance_steps, steps


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (0, [1]), (-3, [1])]
)
def test_steps_double_and_end_at_the_most(most: int, expected: list[int]) -> None:
    assert steps(most) == expected


@given(st.integers(1, 4096))
def test_steps_are_few_rising_and_whole(most: int) -> None:
    found = steps(most)
    assert found[0] == 1 and found[-1] == most
    assert all(a < b <= 2 * a for a, b in pairwise(found))
    assert len(found) <= most.bit_length() + 1


@given(st.integers(1, 4096))
def test_instances_never_have_more_threads_than_there_are_cores(cores: int) -> None:
    found = instance_steps(cores)
    assert found[0] == (1, cores) and found[-1] == (cores, 1)
    for instances, threads in found:
        assert threads >= 1 and instances * threads <= cores
        # What is left over would not give each of them one more.
        assert cores - instances * threads < instances


@given(st.integers(1, 1000))
def test_the_candidates_own_batch_is_among_those_tried(own: int) -> None:
    found = batch_steps(own, None)
    assert own in found and {1, 2, MOST_BATCH} <= set(found) and found == sorted(set(found))


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_build_of_one_batch_has_one_step(own: int, fixed: int) -> None:
    assert batch_steps(own, fixed) == [fixed]


@pytest.mark.parametrize(
    ("throughputs", "expected"),
    [
        ([], False),
        ([100], False),
        ([100, 90], False),
        ([100, 90, 90], True),
        ([100, 190, 195, 199], True),
        ([100, 190, 195, 250], False),
        ([100, 200, 150, 400], False),
    ],
)
def test_throughput_that_stays_for_two_steps_grows_no_longer(throughputs: list[float], expected: bool) -> None:
    assert grows_no_longer(throughputs) is expected


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=12))
def test_growth_is_a_matter_of_shares(throughputs: list[float]) -> None:
    assert grows_no_longer(throughputs) == grows_no_longer([4 * one for one in throughputs])


@given(st.floats(1, 1e6), st.floats(1.06, 2), st.integers(1, 12))
def test_what_grows_at_every_step_is_never_flat(first: float, factor: float, count: int) -> None:
    assert not grows_no_longer([first * factor**at for at in range(count)])
