"""The state of a device, on trees that are fixtures (see trees.py)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.processor import processor_name
from fleetfit.agent.probe.readings import Readings, host_digest, meters, power_mode
from fleetfit.proto.v1 import measurement_pb2

from .trees import JETSON_ORIN_NANO, RASPBERRY_PI_4, X86_SERVER, plant

THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
COUNT = "/sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count"


def test_everything_that_a_raspberry_pi_tells(tmp_path: Path) -> None:
    reading = Readings(plant(tmp_path, RASPBERRY_PI_4)).take()
    assert (reading.load_1m, reading.temperature_celsius, reading.frequency_hz) == (0.42, 48.199, 600_000_000)
    assert (reading.governor, reading.power_mode) == ("ondemand", "ondemand")
    assert reading.cpu_pressure_percent == 1.5
    assert reading.available_memory_bytes == 3421000 * 1024
    assert reading.HasField("throttled") and not reading.throttled
    # No time has passed on this tree, so there is no share of it.
    assert not reading.HasField("steal_percent") and not reading.HasField("other_cpu_percent")


def test_the_hottest_zone_counts_and_a_sensor_that_is_off_does_not(tmp_path: Path) -> None:
    assert Readings(plant(tmp_path, JETSON_ORIN_NANO)).take().temperature_celsius == 51.25


def test_an_empty_tree_has_a_moment_and_nothing_more(tmp_path: Path) -> None:
    reading = Readings(Tree(tmp_path)).take()
    assert reading.monotonic_ns > 0
    reading.ClearField("monotonic_ns")
    assert reading == measurement_pb2.Reading()


def test_shares_of_time_are_counted_since_the_reading_before(tmp_path: Path) -> None:
    readings = Readings(plant(tmp_path, {"/proc/stat": "cpu  100 0 100 800 0 0 0 0 0 0\n"}))
    # A thousand seconds, in ticks: 30 % by others, 10 % stolen, 60 % idle or waiting for a disk.
    ticks = os.sysconf("SC_CLK_TCK")
    plant(tmp_path, {"/proc/stat": _stat(100 + ticks * 300, 100, 800 + ticks * 500, ticks * 100, ticks * 100)})
    reading = readings.take()
    assert reading.steal_percent == pytest.approx(10)
    # What this process has used meanwhile is not others' (of a thousand seconds, it is next to nothing).
    assert reading.other_cpu_percent == pytest.approx(30, abs=0.5)
    assert not readings.take().HasField("steal_percent")


def _stat(user: int, system: int, idle: int, waiting: int, stolen: int) -> str:
    return f"cpu  {user} 0 {system} {idle} {waiting} 0 0 {stolen} 0 0\n"


def test_what_this_process_and_its_children_use_is_not_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = [0.0]
    monkeypatch.setattr(os, "times", lambda: os.times_result((used[0], used[0], used[0], used[0], 0.0)))
    readings = Readings(plant(tmp_path, {"/proc/stat": _stat(0, 0, 0, 0, 0)}))
    ticks = os.sysconf("SC_CLK_TCK")
    plant(tmp_path, {"/proc/stat": _stat(ticks * 60, 0, ticks * 40, 0, 0)})
    used[0] = 10.0
    assert readings.take().other_cpu_percent == pytest.approx(20)
    plant(tmp_path, {"/proc/stat": _stat(ticks * 61, 0, ticks * 100, 0, 0)})
    used[0] = 100.0
    # Clocks that do not agree never make less than nothing.
    assert readings.take().other_cpu_percent == 0


@pytest.mark.parametrize(
    ("word", "throttled"),
    [
        ("0", False),
        ("1", True),
        ("2", True),
        ("4", True),
        ("8", True),
        ("f0000", False),  # it has happened since boot, and is over
        ("50005", True),
        ("50000", False),
        ("e0008", True),
        ("10", False),  # hexadecimal: bit 4, which has no meaning
        ("0x50005", True),
    ],
)
def test_a_raspberry_pi_is_throttled_where_the_firmware_says_it_is_now(
    tmp_path: Path, word: str, throttled: bool
) -> None:
    assert Readings(plant(tmp_path, {THROTTLED: word + "\n"})).take().throttled is throttled


@given(st.integers(0, 0xFFFFF))
def test_only_the_four_bits_of_now_count(tmp_path_factory: pytest.TempPathFactory, word: int) -> None:
    tree = plant(tmp_path_factory.getbasetemp() / "bits", {THROTTLED: f"{word:x}\n"})
    assert Readings(tree).take().throttled == bool(word & 0xF)


def test_x86_is_throttled_where_a_core_was_since_the_reading_before(tmp_path: Path) -> None:
    readings = Readings(plant(tmp_path, X86_SERVER))
    assert readings.take().throttled is False
    plant(tmp_path, {COUNT: "4\n"})
    assert readings.take().throttled is True
    assert readings.take().throttled is False


@pytest.mark.parametrize("word", ["", "unknown"])
def test_a_throttling_word_that_cannot_be_read_says_nothing(tmp_path: Path, word: str) -> None:
    assert not Readings(plant(tmp_path, {THROTTLED: word})).take().HasField("throttled")


@pytest.mark.parametrize(
    ("status", "conf", "mode"),
    [
        ("pmode:0000", "< POWER_MODEL ID=0 NAME=15W >", "15W"),
        ("pmode:0002 fmode:quiet", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >", "MAXN_SUPER"),
        ("pmode:0010", "< POWER_MODEL ID=10 NAME=MODE_10W_DESKTOP >", "MODE_10W_DESKTOP"),
        ("pmode:0003", "< POWER_MODEL ID=0 NAME=15W >", "nvpmodel 3"),
        ("pmode:0001", "", "nvpmodel 1"),
        ("", "< POWER_MODEL ID=0 NAME=15W >", "schedutil"),
        ("nonsense", "", "schedutil"),
    ],
)
def test_a_jetsons_power_mode_has_its_name(tmp_path: Path, status: str, conf: str, mode: str) -> None:
    files = {
        "/var/lib/nvpmodel/status": status + "\n",
        "/etc/nvpmodel.conf": conf + "\n",
        "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    }
    assert power_mode(plant(tmp_path, files)) == mode


def test_what_may_not_be_read_is_no_meter(tmp_path: Path) -> None:
    # A folder fails to be read as a file of root's does for others.
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").mkdir(parents=True)
    assert meters(Tree(tmp_path)) == []


def test_agents_of_one_host_share_its_digest_and_others_do_not(tmp_path: Path) -> None:
    trees = [plant(tmp_path / str(n), files) for n, files in enumerate((RASPBERRY_PI_4, RASPBERRY_PI_4, X86_SERVER))]
    digests = [host_digest(tree) for tree in trees]
    assert digests[0] == digests[1] != digests[2]
    plant(trees[1].root, {"/proc/sys/kernel/random/boot_id": "another boot\n"})
    assert host_digest(trees[1]) != digests[0]


def test_a_host_without_a_machine_id_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = host_digest(Tree(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert host_digest(Tree(tmp_path)) != before
    by_dbus = plant(tmp_path, {"/var/lib/dbus/machine-id": "abc\n"})
    assert host_digest(by_dbus) == host_digest(plant(tmp_path / "etc-id", {"/etc/machine-id": "abc\n"}))


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0b\n", "Cortex-A76"),
        ("model name\t: ARMv7 Processor rev 3 (v7l)\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n", "Cortex-A72"),
        ("model name\t: ARMv8 Processor\nCPU implementer\t: 0x41\nCPU part\t: 0xfff\n", "ARMv8 Processor"),
        ("CPU implementer\t: 0x51\nCPU part\t: 0xd08\nHardware\t: Qualcomm\n", "Qualcomm"),
        ("Model\t\t: Some Board Rev 1\n", "Some Board Rev 1"),
        ("no colon here\n", ""),
    ],
)
def test_a_processor_has_the_best_name_there_is(tmp_path: Path, cpuinfo: str, name: str) -> None:
    assert processor_name(plant(tmp_path, {"/proc/cpuinfo": cpuinfo})) == name
