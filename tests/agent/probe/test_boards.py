"""The probe, the meters and the matching on boards that are constructed (see boards.py); nothing here was run on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetfit.agent.meters.base import FoundMeter, find_meter
from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.readings import Readings, temperature_celsius
from fleetfit.agent.probe.snapshot import take_snapshot
from fleetfit.device_profiles.matching import facts_of, match

from .boards import BOARDS, Board
from .trees import plant


@pytest.fixture(params=BOARDS, ids=[board.profile for board in BOARDS])
def board(request: pytest.FixtureRequest) -> Board:
    found: Board = request.param
    return found


@pytest.fixture
def tree(board: Board, tmp_path: Path) -> Tree:
    return plant(tmp_path, board.files)


def test_it_is_matched_to_its_profile(board: Board, tree: Tree) -> None:
    snapshot = take_snapshot(tree)
    matched = match(facts_of(snapshot))
    assert matched.profile.name == board.profile, matched.reason
    assert snapshot.machine == "aarch64" and snapshot.processor.model == board.processor
    assert not snapshot.emulated


def test_its_meter_is_found_and_covers_what_it_should(board: Board, tree: Tree) -> None:
    snapshot, found = take_snapshot(tree), find_meter(tree)
    assert snapshot.energy == board.energy
    if board.energy:
        assert isinstance(found, FoundMeter) and found.meter.read() == board.microwatts
        # The same before and after other files have been read.
        assert found.meter.covers == board.energy
    else:
        assert snapshot.no_energy_because and not isinstance(found, FoundMeter)
    assert set(board.meters) <= set(snapshot.meters)


def test_its_state_is_read(board: Board, tree: Tree) -> None:
    snapshot, reading = take_snapshot(tree), Readings(tree).take()
    assert snapshot.power_mode == reading.power_mode == board.power_mode
    assert temperature_celsius(tree) == board.celsius
    assert [one.kind for one in snapshot.accelerators] == (["gpu"] if board.gpu else [])
    assert not reading.throttled
    if board.celsius is not None:
        assert reading.frequency_hz > 0


def test_its_names_come_from_pages(board: Board) -> None:
    assert board.sources and all(source.startswith("https://") for source in board.sources)
    # Nothing that only a program tells: no tegrastats, no vcgencmd, no jetson-stats.
    assert all(path.startswith(("/proc/", "/sys/", "/etc/", "/var/", "/fleetfit/")) for path in board.files)


def test_a_chip_before_another_board_is_not_thors_input(tmp_path: Path) -> None:
    files = {"/sys/class/hwmon/hwmon0/name": "ina238\n", "/sys/class/hwmon/hwmon0/power1_input": "5\n"}
    found = find_meter(plant(tmp_path, files))
    assert isinstance(found, FoundMeter) and found.meter.covers == "what ina238 is wired to"


@pytest.mark.parametrize(
    ("name", "is_gpu"),
    [
        ("57000000.gpu", True),
        ("17000000.gp10b", True),
        ("gpu-gpc-0", True),
        ("gpu-nvd-0", False),
        ("15340000.vic", False),
        ("bwmgr", False),
    ],
)
def test_the_gpu_is_told_from_other_devices_whose_clock_changes(tmp_path: Path, name: str, is_gpu: bool) -> None:
    files = {f"/sys/class/devfreq/{name}/cur_freq": "1\n", "/etc/nv_tegra_release": "# R35 (release)\n"}
    assert bool(take_snapshot(plant(tmp_path, files)).accelerators) is is_gpu


@pytest.mark.parametrize(
    ("register", "ids"), [("0x00000000410fd083\n", ("0x41", "0xd08")), ("0x00000000c00fac30\n", ("0xc0", "0xac3"))]
)
def test_the_register_tells_what_cpuinfo_does_not(tmp_path: Path, register: str, ids: tuple[str, str]) -> None:
    path = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
    processor = take_snapshot(plant(tmp_path, {path: register})).processor
    assert (processor.arm_implementer, processor.arm_part) == ids
