from __future__ import annotations

import pytest

from fleetfit.agent.measuring.fitness import Fitness, judge
from fleetfit.proto.v1 import measurement_pb2

Reading = measurement_pb2.Reading


@pytest.mark.parametrize(
    ("reading", "heat", "mode", "wanted", "found"),
    [
        (Reading(), None, "", "", Fitness()),
        (Reading(other_cpu_percent=20, steal_percent=5), (70.0, 80.0), "15W", "15W", Fitness()),
        (
            Reading(other_cpu_percent=43.4, steal_percent=50),
            None,
            "",
            "",
            Fitness(busy="other processes used 43 % of the processors"),
        ),
        (Reading(steal_percent=6), None, "", "", Fitness(busy="the hypervisor took 6 % of the processor time")),
        (Reading(), (70.1, 80.0), "", "", Fitness(hot="it began at 70 °C and slows down at 80 °C")),
        (Reading(), None, "15W", "MAXN", Fitness(other_mode="its power mode is 15W, not MAXN")),
        (Reading(), None, "", "MAXN", Fitness(other_mode="its power mode is unknown, not MAXN")),
    ],
)
def test_what_stands_in_the_way(
    reading: Reading, heat: tuple[float, float] | None, mode: str, wanted: str, found: Fitness
) -> None:
    assert judge(reading, heat, mode, wanted) == found


def test_another_mode_is_no_disturbance_and_a_reason() -> None:
    found = Fitness("busy", "hot", "elsewhere")
    assert (found.disturbance, found.reasons) == ("busy, and hot", "busy, and hot, and elsewhere")
    assert Fitness(other_mode="elsewhere").disturbance == "" and Fitness().reasons == ""
