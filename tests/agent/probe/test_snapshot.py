"""What the probe says about devices, on trees that are fixtures (see trees.py)."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fleetfit.agent.probe.files import Tree
from fleetfit.agent.probe.snapshot import take_snapshot
from fleetfit.proto.v1 import snapshot_pb2

from .trees import CONTAINER_V1, CONTAINER_V2, JETSON_ORIN_NANO, RASPBERRY_PI_4, X86_SERVER, plant

XEON = "Intel(R) Xeon(R) Gold 6226R CPU @ 2.90GHz"


def test_a_raspberry_pi_4(tmp_path: Path) -> None:
    snapshot = take_snapshot(plant(tmp_path, RASPBERRY_PI_4))
    assert snapshot.machine == "aarch64"
    assert snapshot.device_tree_model == "Raspberry Pi 4 Model B Rev 1.4"
    assert list(snapshot.device_tree_compatible) == ["raspberrypi,4-model-b", "brcm,bcm2711"]
    processor = snapshot.processor
    assert (processor.model, processor.vendor) == ("Cortex-A72", "")
    assert (processor.arm_implementer, processor.arm_part) == ("0x41", "0xd08")
    assert list(processor.flags) == ["asimd", "cpuid", "crc32", "evtstrm", "fp"]
    assert (processor.physical_cores, processor.usable_cores, snapshot.threads) == (4, 4, 4)
    assert processor.max_frequency_hz == 1_500_000_000
    assert snapshot.memory_bytes == 3885396 * 1024
    assert (snapshot.os.name, snapshot.os.kernel) == ("Debian GNU/Linux 12 (bookworm)", "6.6.31+rpt-rpi-v8")
    assert (snapshot.os.l4t, bool(snapshot.os.libc)) == ("", True)
    assert snapshot.power_mode == "ondemand"
    assert list(snapshot.meters) == ["thermal", "cpufreq", "pressure", "steal"]
    assert not snapshot.accelerators and not snapshot.emulated
    assert snapshot.python_version == platform.python_version()
    assert snapshot.host_name and len(snapshot.host_digest) == 32 and snapshot.disk_free_bytes > 0


def test_a_jetson_orin_nano(tmp_path: Path) -> None:
    snapshot = take_snapshot(plant(tmp_path, JETSON_ORIN_NANO))
    assert snapshot.device_tree_model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert list(snapshot.device_tree_compatible)[0] == "nvidia,p3768-0000+p3767-0005-super"
    # Not "ARMv8 Processor rev 1 (v8l)", which says nothing.
    assert (snapshot.processor.model, snapshot.processor.arm_part) == ("Cortex-A78AE", "0xd42")
    assert (snapshot.processor.usable_cores, snapshot.processor.max_frequency_hz) == (6, 1_728_000_000)
    assert snapshot.os.l4t.startswith("R36 (release), REVISION: 4.7, GCID: 42132812") and "\n" not in snapshot.os.l4t
    assert (snapshot.os.name, snapshot.os.kernel) == ("Ubuntu 22.04.5 LTS", "5.15.148-tegra")
    assert snapshot.power_mode == "MAXN_SUPER"
    assert [(a.kind, a.name) for a in snapshot.accelerators] == [("gpu", "NVIDIA Tegra (integrated)")]
    assert list(snapshot.meters) == ["thermal", "cpufreq"]


def test_an_x86_server(tmp_path: Path) -> None:
    snapshot = take_snapshot(plant(tmp_path, X86_SERVER))
    processor = snapshot.processor
    assert (snapshot.machine, processor.model, processor.vendor) == ("x86_64", XEON, "GenuineIntel")
    assert list(processor.flags) == ["avx2", "avx512_vnni", "avx512f", "fpu", "sse2"]
    assert (processor.physical_cores, processor.usable_cores) == (2, 4)
    assert not processor.arm_part and not processor.HasField("max_frequency_hz")
    assert snapshot.memory_bytes == 65536000 * 1024
    assert (snapshot.device_tree_model, list(snapshot.device_tree_compatible)) == ("", [])
    assert [(a.kind, a.name) for a in snapshot.accelerators] == [("gpu", "NVIDIA L4")]
    assert (snapshot.power_mode, list(snapshot.meters)) == ("", ["steal", "rapl"])
    assert (snapshot.energy, snapshot.no_energy_because) == ("processor packages", "")


@pytest.mark.parametrize(
    ("files", "product"),
    [
        ({}, ""),
        (
            {"sys_vendor": "ADLINK\n", "product_name": "Ampere Altra Developer Platform\n"},
            "ADLINK Ampere Altra Developer Platform",
        ),
        ({"sys_vendor": "Maker\n", "board_asset_tag": "rack-7\n"}, "Maker"),
        # Which instance it is stays on the machine.
        ({"sys_vendor": "Amazon EC2\n", "board_asset_tag": "i-0af01c0123456789a\n"}, "EC2 instance"),
    ],
)
def test_what_the_firmware_calls_the_machine(tmp_path: Path, files: dict[str, str], product: str) -> None:
    tree = plant(tmp_path, X86_SERVER | {f"/sys/devices/virtual/dmi/id/{name}": text for name, text in files.items()})
    assert take_snapshot(tree).product == product


@pytest.mark.parametrize(
    ("files", "cores", "memory"), [(CONTAINER_V2, 2, 2 << 30), (CONTAINER_V1, 1, 1 << 30)], ids=["v2", "v1"]
)
def test_a_container_with_limits(tmp_path: Path, files: dict[str, str], cores: int, memory: int) -> None:
    snapshot = take_snapshot(plant(tmp_path, files))
    assert (snapshot.processor.usable_cores, snapshot.threads) == (cores, cores)
    # What the processor is does not change with how much of it may be used.
    assert (snapshot.processor.model, snapshot.processor.physical_cores) == (XEON, 2)
    assert snapshot.memory_bytes == memory


@pytest.mark.parametrize(
    "unlimited",
    [
        {"/sys/fs/cgroup/cpu.max": "max 100000\n", "/sys/fs/cgroup/memory.max": "max\n"},
        {
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    ],
    ids=["v2", "v1"],
)
def test_a_container_without_limits_has_the_whole_machine(tmp_path: Path, unlimited: dict[str, str]) -> None:
    snapshot = take_snapshot(plant(tmp_path, {**X86_SERVER, **unlimited}))
    assert (snapshot.processor.usable_cores, snapshot.memory_bytes) == (4, 65536000 * 1024)


def test_an_empty_tree_is_a_device_of_which_nothing_is_known(tmp_path: Path) -> None:
    snapshot = take_snapshot(Tree(tmp_path))
    assert snapshot.processor == snapshot_pb2.Processor()
    assert not snapshot.HasField("memory_bytes")
    assert (snapshot.device_tree_model, snapshot.os.name, snapshot.os.kernel, snapshot.power_mode) == ("", "", "", "")
    assert not snapshot.meters and not snapshot.accelerators and not snapshot.device_tree_compatible
    # One thread can always be used; what runs the probe is known in any case.
    assert snapshot.threads == 1
    assert snapshot.machine == platform.machine() and snapshot.runtimes


@pytest.mark.parametrize(("asked", "given"), [(0, 4), (1, 1), (3, 3), (64, 4)])
def test_threads_are_those_asked_for_but_no_more_than_there_are(tmp_path: Path, asked: int, given: int) -> None:
    assert take_snapshot(plant(tmp_path, RASPBERRY_PI_4), threads=asked).threads == given


def test_runtimes_are_listed_with_what_they_can(tmp_path: Path) -> None:
    found = {runtime.name: runtime for runtime in take_snapshot(Tree(tmp_path)).runtimes}
    assert found["onnxruntime"].available and found["onnxruntime"].version
    assert list(found["onnxruntime"].formats) == ["onnx"]
    assert list(found["onnxruntime"].providers) == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("told", "variable", "because"), [(True, "", "its owner says so"), (False, "a72", "QEMU_CPU is set")]
)
def test_emulation_is_told_or_seen(monkeypatch: pytest.MonkeyPatch, told: bool, variable: str, because: str) -> None:
    monkeypatch.delenv("QEMU_CPU", raising=False)
    if variable:
        monkeypatch.setenv("QEMU_CPU", variable)
    snapshot = take_snapshot(Tree(), emulated=told)
    assert (snapshot.emulated, snapshot.emulated_because) == (True, because)


def test_this_machine_is_not_taken_for_an_emulated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QEMU_CPU", raising=False)
    snapshot = take_snapshot(Tree())
    assert not snapshot.emulated and not snapshot.emulated_because
    assert snapshot.machine == platform.machine() and snapshot.processor.usable_cores >= 1


def test_the_probe_prints_a_snapshot_and_nothing_else(tmp_path: Path) -> None:
    plant(tmp_path, RASPBERRY_PI_4)
    options = ["--root", str(tmp_path), "--threads", "2", "--emulated"]
    ended = subprocess.run([sys.executable, "-m", "fleetfit.agent.probe", *options], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")
    snapshot = snapshot_pb2.DeviceSnapshot.FromString(ended.stdout)
    assert (snapshot.processor.model, snapshot.threads, snapshot.emulated) == ("Cortex-A72", 2, True)
