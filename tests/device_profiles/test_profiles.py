from __future__ import annotations

from pathlib import Path

import pytest

from fleetfit.compress.recipe import default_recipes
from fleetfit.core.errors import InvalidProfile
from fleetfit.device_profiles.loader import load_profiles, parse_profile
from fleetfit.device_profiles.matching import GENERIC, DeviceFactsForMatching, match
from fleetfit.device_profiles.schema import Fact

NAMES = {
    "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "jetson-agx-orin",
    "x86-avx2", "x86-avx512-vnni", "x86-amx", "arm-server",
}  # fmt: skip
MINIMAL = "name: a\ntitle: A\nruntimes: [onnxruntime]\nrecipes: [pruned]\n"


def test_all_profiles_load_and_every_figure_has_its_source() -> None:
    profiles = load_profiles()
    assert set(profiles) == NAMES
    sourced = 0
    for profile in profiles.values():
        for name in type(profile.facts).model_fields:
            fact: Fact = getattr(profile.facts, name)
            assert (fact.value is None) == (fact.source is None)
            if fact.source is not None:
                sourced += 1
                assert fact.source.url.startswith("https://") and fact.source.quote
        assert profile.match
    assert sourced >= 6


def test_every_profile_names_recipes_and_runtimes_that_exist() -> None:
    for profile in load_profiles().values():
        assert set(profile.recipes) <= set(default_recipes())
        assert len(profile.recipes) >= 6
        assert set(profile.runtimes) <= {"onnxruntime"}
    generic = match(DeviceFactsForMatching()).profile
    assert set(generic.recipes) <= set(default_recipes())


def facts(**known: object) -> DeviceFactsForMatching:
    return DeviceFactsForMatching(**known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "name", "because"),
    [
        (
            facts(
                machine="aarch64", device_tree_model="Raspberry Pi 4 Model B Rev 1.4",
                device_tree_compatible=("raspberrypi,4-model-b", "brcm,bcm2711"), arm_implementer="0x41", arm_part="0xd08",
            ),
            "raspberry-pi-4", "compatible with 'raspberrypi,4-model-b'",
        ),
        (facts(machine="aarch64", device_tree_model="Raspberry Pi 4 Model B Rev 1.4\0"), "raspberry-pi-4", "calls it"),
        (facts(device_tree_model="Raspberry Pi 400 Rev 1.0"), "raspberry-pi-4", "Raspberry Pi 400 Rev 1.0"),
        (facts(device_tree_model="Raspberry Pi 500 Rev 1.0"), "raspberry-pi-5", "Raspberry Pi 500"),
        (facts(device_tree_compatible=("raspberrypi,5-model-b", "brcm,bcm2712")), "raspberry-pi-5", "5-model-b"),
        (
            facts(device_tree_compatible=("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234")),
            "jetson-orin-nano", "p3767-0005-super",
        ),
        (
            facts(device_tree_model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"),
            "jetson-orin-nano", "calls it",
        ),
        (
            facts(device_tree_compatible=("nvidia,p3737-0000+p3701-0000", "nvidia,p3701-0000", "nvidia,tegra234")),
            "jetson-agx-orin", "p3701-0000",
        ),
        # An AGX Orin that emulates an Orin Nano is to be treated as one.
        (
            facts(device_tree_compatible=("nvidia,p3737-0000+p3701-0000-as-p3767-0004", "nvidia,tegra234")),
            "jetson-orin-nano", "p3767-0004",
        ),
        (facts(machine="x86_64", cpu_flags=frozenset({"avx2", "fma"})), "x86-avx2", "avx2"),
        (
            facts(machine="x86_64", cpu_flags=frozenset({"avx2", "avx512f", "avx512_vnni"})),
            "x86-avx512-vnni", "its processor has avx512f, avx512_vnni",
        ),
        (
            facts(machine="x86_64", cpu_flags=frozenset({"avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"})),
            "x86-amx", "amx_int8",
        ),
        (facts(machine="aarch64", arm_implementer="0x41", arm_part="0xd0c"), "arm-server", "Arm part 0xd0c"),
        (facts(machine="aarch64", arm_implementer="0x41", arm_part="0xD4F"), "arm-server", "0xD4F"),
    ],
)  # fmt: skip
def test_matching(found: DeviceFactsForMatching, name: str, because: str) -> None:
    matched = match(found)
    assert matched.profile.name == name
    assert because in matched.reason


@pytest.mark.parametrize(
    "found",
    [
        facts(),
        facts(machine="x86_64", cpu_flags=frozenset({"sse2"}), cpu_model="Old CPU"),
        facts(machine="aarch64", arm_implementer="0x51", arm_part="0xd0c"),
        facts(machine="riscv64"),
        facts(device_tree_model="Raspberry Pi 3 Model B Plus", device_tree_compatible=("raspberrypi,3-model-b-plus",)),
        facts(device_tree_compatible=("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194")),
    ],
)
def test_an_unknown_kind_gets_a_profile_made_from_what_was_found(found: DeviceFactsForMatching) -> None:
    matched = match(found)
    assert matched.profile.name == GENERIC
    assert "no profile is declared for" in matched.reason
    assert all(getattr(matched.profile.facts, name).value is None for name in type(matched.profile.facts).model_fields)
    assert matched.profile.model_dump_json()


def test_this_machine_gets_a_profile() -> None:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    matched = match(facts(machine="x86_64", cpu_flags=frozenset(flags.split())))
    assert matched.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", r"a\.yaml is not YAML in line 1"),
        ("- 1", "must be a mapping"),
        ("", "must be a mapping"),
        (MINIMAL + "colour: red\n", "unknown key 'colour'"),
        (MINIMAL.replace("title: A\n", ""), "title is wrong"),
        (MINIMAL.replace("[pruned]", "[]"), "recipes is wrong"),
        (MINIMAL + "facts: {cores: {value: 4}}\n", "facts.cores is wrong: a figure needs its source"),
        (
            MINIMAL + "facts: {cores: {value: 4, source: {url: 'http://x.y', read: 2026-11-24, quote: four cores}}}\n",
            "facts.cores.source.url",
        ),
        (MINIMAL + "match: [{}]\n", "would match every device"),
        (MINIMAL + "round_to: 0\n", "round_to"),
    ],
)
def test_what_breaks_the_schema_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(InvalidProfile, match=said) as caught:
        parse_profile(text, source="a.yaml")
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("a.yaml")


def test_a_folder_of_profiles(tmp_path: Path) -> None:
    with pytest.raises(InvalidProfile, match="no device profile"):
        load_profiles(tmp_path)
    (tmp_path / "b.yaml").write_text(MINIMAL)
    with pytest.raises(InvalidProfile, match="describes 'a'"):
        load_profiles(tmp_path)
