"""Throttling on constructed trees, and its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.readings import Readings, clocks, free_memory_bytes, heat_left, memory_limits
from fleetfit.agent.probe.snapshot import take_snapshot
from fleetfit.agent.probe.throttling import Throttling

from .trees import JETSON_ORIN_NANO, RASPBERRY_PI_4, X86_SERVER, plant

FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
CPU = "/sys/devices/system/cpu"


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ("0", "0", set()),
        ("0", "1", {"under-voltage"}),
        ("0", "e", {"capped clock", "throttled by firmware", "soft temperature limit"}),
        # It was and is over, since the look before: the bits of the past are new.
        ("0", "50000", {"under-voltage", "throttled by firmware"}),
        # What was before the look before is none of this measurement's.
        ("50000", "50000", set()),
        ("50000", "d0000", {"soft temperature limit"}),
    ],
)
def test_a_raspberry_pi_says_why(tmp_path: Path, before: str, after: str, reasons: set[str]) -> None:
    throttling = Throttling(plant(tmp_path, {FIRMWARE: before}))
    plant(tmp_path, {FIRMWARE: after})
    assert throttling.look() == reasons


def test_a_kernel_without_the_file_is_asked_by_vcgencmd(tmp_path: Path) -> None:
    tree = plant(tmp_path, {"/usr/bin/vcgencmd": '#!/bin/sh\ntest "$1" = get_throttled && echo throttled=0x50005\n'})
    (tmp_path / "usr/bin/vcgencmd").chmod(0o755)
    # No mailbox: not a Raspberry Pi, nothing is started.
    assert Throttling(tree).look() is None
    plant(tmp_path, {"/dev/vcio": ""})
    assert Throttling(tree).look() == {"under-voltage", "throttled by firmware"}
    (tmp_path / "usr/bin/vcgencmd").unlink()
    assert Throttling(tree).look() is None


def test_x86_tells_cores_from_the_package(tmp_path: Path) -> None:
    package = {f"{CPU}/cpu{n}/thermal_throttle/package_throttle_count": "7\n" for n in range(4)}
    throttling = Throttling(plant(tmp_path, {**X86_SERVER, **package}))
    assert throttling.look() == set()
    plant(tmp_path, {f"{CPU}/cpu2/thermal_throttle/package_throttle_count": "8\n"})
    assert throttling.look() == {"the processor package too hot"}
    plant(tmp_path, {f"{CPU}/cpu1/thermal_throttle/core_throttle_count": "4\n"})
    assert throttling.look() == {"a core too hot"}
    assert throttling.look() == set()


def test_a_jetson_counts_over_current_and_a_fan_is_no_throttling(tmp_path: Path) -> None:
    device = "/sys/class/thermal/cooling_device"
    files = {
        **JETSON_ORIN_NANO,
        "/sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
        "/sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
        "/sys/class/hwmon/hwmon3/oc3_event_cnt": "12\n",
        f"{device}0/type": "pwm-fan\n",
        f"{device}0/cur_state": "3\n",
        f"{device}1/type": "cpufreq-cpu0\n",
        f"{device}1/cur_state": "0\n",
    }
    throttling = Throttling(plant(tmp_path, files))
    assert throttling.look() == set()
    plant(tmp_path, {"/sys/class/hwmon/hwmon3/oc3_event_cnt": "13\n"})
    assert throttling.look() == {"over-current"}
    plant(tmp_path, {f"{device}1/cur_state": "2\n"})
    assert throttling.look() == {"clocks lowered to cool down"}


def test_a_device_that_tells_nothing_is_not_called_unthrottled(tmp_path: Path) -> None:
    assert Throttling(Tree(tmp_path)).look() is None
    reading = Readings(Tree(tmp_path)).take()
    assert not reading.HasField("throttled") and not reading.throttled_by


def test_a_glance_has_what_changes_within_seconds(tmp_path: Path) -> None:
    readings = Readings(plant(tmp_path, {**RASPBERRY_PI_4, FIRMWARE: "4\n"}))
    glance = readings.glance()
    assert (glance.temperature_celsius, glance.frequency_hz, glance.throttled) == (48.199, 600_000_000, True)
    assert list(glance.throttled_by) == ["throttled by firmware"]
    assert glance.available_memory_bytes == 3421000 * 1024 and not glance.governor


def test_clocks_say_whether_they_are_pinned(tmp_path: Path) -> None:
    assert clocks(Tree(tmp_path)) == ""
    free = {f"{CPU}/cpu0/cpufreq/scaling_min_freq": "600000\n", f"{CPU}/cpu0/cpufreq/scaling_max_freq": "1500000\n"}
    assert clocks(plant(tmp_path, free)) == "600 to 1500 MHz"
    assert clocks(plant(tmp_path, {f"{CPU}/cpu0/cpufreq/scaling_min_freq": "1500000\n"})) == "pinned at 1500 MHz"


def test_the_zone_nearest_to_slowing_down_counts(tmp_path: Path) -> None:
    zone = "/sys/class/thermal/thermal_zone"
    files = {
        f"{zone}0/temp": "60000\n",
        f"{zone}0/trip_point_0_type": "passive\n",
        f"{zone}0/trip_point_0_temp": "99000\n",
        f"{zone}0/trip_point_1_type": "critical\n",
        f"{zone}0/trip_point_1_temp": "61000\n",
        f"{zone}1/temp": "55000\n",
        f"{zone}1/trip_point_0_type": "passive\n",
        f"{zone}1/trip_point_0_temp": "70000\n",
    }
    assert heat_left(Tree(tmp_path)) is None
    assert heat_left(plant(tmp_path, files)) == (55.0, 70.0)


def test_free_memory_is_what_every_group_above_allows(tmp_path: Path) -> None:
    assert free_memory_bytes(Tree(tmp_path)) is None
    tree = plant(tmp_path, {"/proc/meminfo": "MemAvailable: 1000000 kB\n"})
    assert free_memory_bytes(tree) == 1_024_000_000
    group = "/sys/fs/cgroup/system.slice"
    files = {
        "/proc/self/cgroup": "0::/system.slice/agent.service\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": "900000000\n",
        f"{group}/agent.service/memory.max": "500000000\n",
        f"{group}/agent.service/memory.current": "300000000\n",
        f"{group}/agent.service/memory.stat": "anon 100\ninactive_file 50000000\n",
    }
    assert free_memory_bytes(plant(tmp_path, files)) == 250_000_000
    plant(tmp_path, {f"{group}/memory.max": "950000000\n"})
    assert free_memory_bytes(tree) == 50_000_000
    old = {
        f"/sys/fs/cgroup/memory/memory.{name}": value
        for name, value in {"limit_in_bytes": "9", "usage_in_bytes": "4"}.items()
    }
    assert free_memory_bytes(plant(tmp_path, old)) == 5


def test_a_group_of_the_first_kind_counts_where_this_process_is_in_it(tmp_path: Path) -> None:
    """As systemd and Docker make them on kernels and boards with cgroup v1: below the root, which has no limit."""
    folder = "/sys/fs/cgroup/memory"
    group = f"{folder}/system.slice/agent.service"
    files = {
        "/proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 1000000 kB\n",
        "/proc/self/cgroup": "4:cpu,cpuacct:/elsewhere\n3:memory:/system.slice/agent.service\n0::/other\n",
        f"{folder}/memory.limit_in_bytes": "9223372036854771712\n",
        f"{folder}/memory.usage_in_bytes": "7000000000\n",
        f"{group}/memory.limit_in_bytes": "536870912\n",
        f"{group}/memory.usage_in_bytes": "500000000\n",
        f"{group}/memory.stat": "inactive_file 1\ntotal_inactive_file 100000000\n",
    }
    tree = plant(tmp_path, files)
    assert free_memory_bytes(tree) == 136_870_912
    assert min(memory_limits(tree)) == 536870912
    assert take_snapshot(tree, runtimes=()).memory_bytes == 536870912
    assert Readings(tree).glance().available_memory_bytes == 136_870_912
