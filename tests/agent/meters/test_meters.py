"""Meters on constructed trees: written from the kernel's documentation and jetson-stats' reading of it, not recorded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.agent.meters.base import FoundMeter, NoMeter, find_meter
from fleetfit.agent.probe.files import Tree

from ..probe.trees import plant

HWMON = "/sys/class/hwmon"
RAPL = "/sys/class/powercap"
ORIN_NANO: Mapping[str, str] = {
    f"{HWMON}/hwmon0/name": "tmp102\n",
    f"{HWMON}/hwmon1/name": "ina3221\n",
    f"{HWMON}/hwmon1/in1_label": "VDD_IN\n",
    f"{HWMON}/hwmon1/in1_input": "5000\n",
    f"{HWMON}/hwmon1/curr1_input": "1200\n",
    f"{HWMON}/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    f"{HWMON}/hwmon1/in2_input": "5000\n",
    f"{HWMON}/hwmon1/curr2_input": "400\n",
    f"{HWMON}/hwmon1/in7_label": "sum of shunt voltages\n",
    f"{HWMON}/hwmon1/in7_input": "9\n",
}
AGX_ORIN: Mapping[str, str] = {
    f"{HWMON}/hwmon3/name": "ina3221\n",
    f"{HWMON}/hwmon3/in1_label": "VDD_GPU_SOC\n",
    f"{HWMON}/hwmon3/in1_input": "10000\n",
    f"{HWMON}/hwmon3/curr1_input": "300\n",
    f"{HWMON}/hwmon3/in2_label": "VDD_CPU_CV\n",
    f"{HWMON}/hwmon3/in2_input": "10000\n",
    f"{HWMON}/hwmon3/curr2_input": "200\n",
    f"{HWMON}/hwmon4/name": "ina3221\n",
    f"{HWMON}/hwmon4/in1_label": "NC\n",
    f"{HWMON}/hwmon4/in1_input": "10000\n",
    f"{HWMON}/hwmon4/curr1_input": "900\n",
}
OLD_NANO: Mapping[str, str] = {
    f"/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/{name}": value
    for name, value in {
        "rail_name_0": "POM_5V_IN\n",
        "in_power0_input": "2600\n",
        "rail_name_1": "POM_5V_GPU\n",
        "in_power1_input": "100\n",
    }.items()
}
SERVER: Mapping[str, str] = {
    f"{RAPL}/intel-rapl/enabled": "1\n",
    f"{RAPL}/intel-rapl:0/name": "package-0\n",
    f"{RAPL}/intel-rapl:0/energy_uj": "262143000000\n",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    f"{RAPL}/intel-rapl:0:0/name": "core\n",
    f"{RAPL}/intel-rapl:0:0/energy_uj": "5\n",
    f"{RAPL}/intel-rapl:1/name": "package-1\n",
    f"{RAPL}/intel-rapl:1/energy_uj": "1000\n",
    f"{RAPL}/intel-rapl:1/max_energy_range_uj": "262143328850\n",
}


def meter_of(tree: Tree) -> FoundMeter:
    found = find_meter(tree)
    assert isinstance(found, FoundMeter), found
    return found


@pytest.mark.parametrize(
    ("files", "name", "covers", "microwatts"),
    [
        (ORIN_NANO, "rails", "module input (VDD_IN)", 6_000_000),
        (AGX_ORIN, "rails", "sum of the module's rails VDD_GPU_SOC, VDD_CPU_CV", 5_000_000),
        (OLD_NANO, "rails", "module input (POM_5V_IN)", 2_600_000),
        (
            {f"{HWMON}/hwmon0/name": "ina219\n", f"{HWMON}/hwmon0/power1_input": "3120000\n"},
            "supply",
            "what ina219 is wired to",
            3_120_000,
        ),
        (
            {f"{HWMON}/hwmon0/name": "power_meter\n", f"{HWMON}/hwmon0/power1_average": "92000000\n"},
            "supply",
            "the whole machine (ACPI power meter)",
            92_000_000,
        ),
    ],
)
def test_a_monitor_of_power_tells_microwatts(
    tmp_path: Path, files: Mapping[str, str], name: str, covers: str, microwatts: int
) -> None:
    found = meter_of(plant(tmp_path, files))
    assert (found.name, found.meter.covers, found.meter.counts) == (name, covers, False)
    assert found.meter.read() == microwatts


@pytest.mark.parametrize(
    ("files", "lag_s"),
    [
        ({**ORIN_NANO, f"{HWMON}/hwmon1/update_interval": "140\n"}, 0.14),
        (ORIN_NANO, 0.0),
        ({f"{HWMON}/hwmon0/name": "power_meter", f"{HWMON}/hwmon0/power1_average": "1"}, 2.0),
        (
            {
                f"{HWMON}/hwmon0/name": "power_meter",
                f"{HWMON}/hwmon0/power1_average": "1",
                f"{HWMON}/hwmon0/power1_average_interval": "1000",
            },
            1.0,
        ),
        (SERVER, 0.0),
    ],
)
def test_a_meter_says_how_slow_it_is(tmp_path: Path, files: Mapping[str, str], lag_s: float) -> None:
    assert meter_of(plant(tmp_path, files)).meter.lag_s == lag_s


def test_packages_are_counted_together_and_across_the_end_of_a_counters_range(tmp_path: Path) -> None:
    tree = plant(tmp_path, SERVER)
    found = meter_of(tree)
    assert (found.name, found.meter.covers, found.meter.counts) == ("rapl", "processor packages", True)
    assert found.meter.read() == 0
    # Package 0 passes the end of its range: 328,850 to the end and 5,000 after it; package 1 counts on by 2,000.
    plant(tmp_path, {f"{RAPL}/intel-rapl:0/energy_uj": "5000\n", f"{RAPL}/intel-rapl:1/energy_uj": "3000\n"})
    assert found.meter.read() == 328_850 + 5_000 + 2_000
    (tmp_path / f"{RAPL}/intel-rapl:1/energy_uj".lstrip("/")).unlink()
    assert found.meter.read() is None
    plant(tmp_path, {f"{RAPL}/intel-rapl:1/energy_uj": "4000\n"})
    assert found.meter.read() == 328_850 + 5_000 + 3_000


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 999), max_size=12), st.integers(0, 999))
def test_a_counter_gives_back_what_was_added_to_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], start: int
) -> None:
    def state(total: int) -> dict[str, str]:
        zone = f"{RAPL}/intel-rapl:0"
        return {
            f"{zone}/name": "package-0",
            f"{zone}/max_energy_range_uj": "1000",
            f"{zone}/energy_uj": str(total % 1000),
        }

    root = tmp_path_factory.getbasetemp() / "counter"
    meter = meter_of(plant(root, state(start))).meter
    assert meter.read() == 0
    for at in range(len(steps)):
        plant(root, state(start + sum(steps[: at + 1])))
        assert meter.read() == sum(steps[: at + 1])


def test_of_several_meters_the_one_that_covers_most_is_used(tmp_path: Path) -> None:
    assert meter_of(plant(tmp_path, {**SERVER, **ORIN_NANO})).name == "rails"
    whole = {f"{HWMON}/hwmon9/name": "power_meter\n", f"{HWMON}/hwmon9/power1_average": "1\n"}
    assert meter_of(plant(tmp_path, whole)).name == "supply"


def test_that_there_is_no_meter_is_a_value(tmp_path: Path) -> None:
    assert find_meter(Tree(tmp_path)) == NoMeter("this device has no meter that fleetfit knows")
    disk = {f"{HWMON}/hwmon0/name": "nvme\n", f"{HWMON}/hwmon0/power1_input": "1\n"}
    assert isinstance(find_meter(plant(tmp_path, disk)), NoMeter)


def test_a_meter_that_may_not_be_read_says_what_to_do(tmp_path: Path) -> None:
    tree = plant(tmp_path, {f"{RAPL}/intel-rapl:0/name": "package-0\n"})
    # A folder fails to be read as a file of root's does for others.
    (tmp_path / f"{RAPL}/intel-rapl:0/energy_uj".lstrip("/")).mkdir()
    found = find_meter(tree)
    assert (
        isinstance(found, NoMeter) and "for root only" in found.reason and "let the agent's user read" in found.reason
    )


_PLUGINS = """
from fleetfit.agent.meters.base import Meter
class Clamp(Meter):
    counts, reach, covers = False, "device", "the socket on the wall"
    @classmethod
    def find(cls, tree): return cls()
    def read(self): return 42
"""


def test_plug_ins_are_found_and_one_that_fails_is_told(tmp_path: Path) -> None:
    facts = tmp_path / "clamp-1.0.dist-info"
    facts.mkdir()
    (tmp_path / "clamp.py").write_text(_PLUGINS)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: clamp\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fleetfit.meters]\nclamp = clamp:Clamp\n")
    code = (
        "from pathlib import Path; from fleetfit.agent.meters.base import find_meter; from fleetfit.agent.probe.files import Tree\n"
        "found = find_meter(Tree(Path('nowhere')))\n"
        "print(found.reason if hasattr(found, 'reason') else (found.name, found.meter.read()))"
    )

    def run() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert run() == "('clamp', 42)"
    (tmp_path / "clamp.py").write_text("raise RuntimeError('no driver')")
    assert run() == "the meter plug-in clamp:Clamp failed (RuntimeError: no driver)"


# Constructed after jetson-stats' own source (jtop/jtop.py, jtop/core/power.py): no board is at hand.
_JTOP = """
class jtop:
    def __init__(self, interval=0.5): self.running = False
    def start(self):
        if {fails}: raise RuntimeError('The jetson_stats.service is not active')
        self.running = True
    def ok(self): return self.running
    @property
    def power(self): return {power}
    def close(self): print('closed')
"""


@pytest.mark.parametrize(
    ("fails", "power", "said"),
    [
        (False, "{'rail': {}, 'tot': {'name': 'VDD_IN', 'power': 6100}}", "jetson_stats 6100000 1.0\nclosed"),
        (True, "{}", "jetson-stats is installed and cannot be read (The jetson_stats.service is not active)"),
        (
            False,
            "({'cur': 6100}, {})",
            "closed\njetson-stats is installed and tells no total power; release 4 or newer does",
        ),
    ],
)
def test_jetson_stats_is_used_where_the_rails_cannot_be_read(
    tmp_path: Path, fails: bool, power: str, said: str
) -> None:
    (tmp_path / "jtop.py").write_text(_JTOP.format(fails=fails, power=power))
    plant(tmp_path / "root", {"/etc/nv_tegra_release": "# R36 (release)\n"})
    code = (
        "from pathlib import Path; from fleetfit.agent.meters.base import find_meter; from fleetfit.agent.probe.files import Tree\n"
        "found = find_meter(Tree(Path('root')))\n"
        "if hasattr(found, 'reason'): print(found.reason)\n"
        "else: print(found.name, found.meter.read(), found.meter.lag_s); found.meter.close()"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True, capture_output=True, text=True
    )
    assert ended.stdout.strip() == said


def test_rails_that_can_be_read_come_before_jetson_stats(tmp_path: Path) -> None:
    tree = plant(tmp_path, {**ORIN_NANO, "/etc/nv_tegra_release": "# R36 (release)\n"})
    assert meter_of(tree).name == "rails"
