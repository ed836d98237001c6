"""Nothing of fleetfit works on a host while a sample is taken there."""

from __future__ import annotations

import pytest

from .conftest import Undisturbed
from .windows import Held, outside, query, raw_results, recorded, together


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_compression_and_no_second_measurement_overlaps_a_sample_window(undisturbed: Undisturbed) -> None:
    # The fleet that test_killed.py compares with: two agents and three jobs with training make as much contention as a
    # fleet of this test's own would, which would take another minute. The killed fleet is held to the same there.
    undisturbed.finish()
    state = undisturbed.fleet.root / "state"
    windows = recorded(state)

    assert together(windows) == []
    assert outside(windows) == []
    assert len([one for one in windows if one.holder.startswith("compressing")]) == len(
        query(state, "SELECT key FROM variant")
    )
    measuring = [one for one in windows if one.holder.startswith("measuring")]
    assert len(measuring) == len(query(state, "SELECT id FROM measurement")) > 0
    assert all(one.samples for one in measuring)


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_agents_and_the_server_took_turns_on_one_host_and_one_clock(undisturbed: Undisturbed) -> None:
    undisturbed.finish()
    state = undisturbed.fleet.root / "state"
    results = raw_results(state).values()

    # Windows are comparable only on one boot of one host.
    assert len({(result.boot_id, result.host_digest) for result in results}) == 1
    assert all(result.boot_id and result.host_digest for result in results)
    # Nothing would prove that nothing overlapped, had they worked one after another anyway.
    order = sorted(recorded(state), key=lambda held: held.begin)
    kinds = "".join(held.holder[0] for held in order)
    assert kinds.count("cm") > 2 and kinds.count("mc") > 2, kinds
    devices = {row["id"]: row["device_id"] for row in query(state, "SELECT id, device_id FROM measurement")}
    measured = [devices[held.holder.split()[1]] for held in order if held.holder.startswith("measuring")]
    turns = sum(earlier != later for earlier, later in zip(measured, measured[1:], strict=False))
    assert turns > 2, measured


FREE = Held("a", 10, 20, ((12, 15),))


@pytest.mark.parametrize(
    ("windows", "found"),
    [
        ([FREE, Held("b", 20, 30)], []),
        ([Held("b", 20, 30), FREE], []),
        ([FREE, Held("b", 19, 30)], [("a", "b")]),
        ([Held("b", 12, 14), FREE], [("a", "b")]),
        ([FREE, Held("b", 10, 20)], [("a", "b")]),
        ([FREE, Held("long", 5, 50), Held("b", 30, 40)], [("long", "a"), ("long", "b")]),
        ([Held("b", 11, 12), Held("c", 13, 14), FREE], [("a", "b"), ("a", "c")]),
        ([], []),
    ],
)
def test_two_holders_at_once_are_found_in_any_order(windows: list[Held], found: list[tuple[str, str]]) -> None:
    assert sorted(together(windows)) == sorted(found)


@pytest.mark.parametrize("samples", [((9, 12),), ((12, 21),), ((12, 15), (15, 15)), ((0, 0),), ((15, 12),)])
def test_a_sample_window_outside_its_hold_is_found(samples: tuple[tuple[int, int], ...]) -> None:
    assert outside([FREE, Held("b", 10, 20, samples)]) == ["b"]


def test_a_hold_without_an_end_is_found() -> None:
    assert outside([Held("b", 10, 0)]) == ["b"]
    assert outside([FREE]) == []


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recorded_window_that_is_moved_is_found(undisturbed: Undisturbed) -> None:
    undisturbed.finish()
    first, second, *rest = sorted(recorded(undisturbed.fleet.root / "state"), key=lambda held: held.begin)
    moved = Held(second.holder, first.begin, second.end, second.samples)

    assert together([first, moved, *rest]) == [(first.holder, second.holder)]
