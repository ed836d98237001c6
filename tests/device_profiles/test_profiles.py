from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

from fleetfit.compress.recipe import default_recipes
from fleetfit.core.errors import InvalidProfile
from fleetfit.device_profiles.loader import load_profiles, parse_profile
from fleetfit.device_profiles.matching import GENERIC, DeviceFactsForMatching, match
from fleetfit.device_profiles.schema import DeviceProfile, Fact, Source
from fleetfit.runtimes.registry import runtimes

from .boards import BOARDS

MINIMAL = "name: a\ntitle: A\nruntimes: [onnxruntime]\nrecipes: [pruned]\n"


@pytest.fixture(params=sorted(load_profiles()))
def profile(request: pytest.FixtureRequest) -> DeviceProfile:
    return load_profiles()[request.param]


def sources_of(profile: DeviceProfile) -> list[Source]:
    facts = [getattr(profile.facts, name) for name in type(profile.facts).model_fields]
    found = [fact.source for fact in facts] + [native.source for native in profile.native.values()]
    listed = [*profile.agent.sources, *(mode.source for mode in profile.power_modes)]
    return [*(one for one in found if one), *listed, *(source for rule in profile.match for source in rule.sources)]


def test_every_figure_has_its_source(profile: DeviceProfile) -> None:
    for name in type(profile.facts).model_fields:
        fact: Fact = getattr(profile.facts, name)
        assert (fact.value is None) == (fact.source is None)
    for source in sources_of(profile):
        assert source.url.startswith("https://") and source.quote == source.quote.strip()
        assert datetime.date(2026, 11, 1) <= source.read <= datetime.date.today()
    # What flags of x86 are called is what the kernel prints; strings and part numbers were read somewhere.
    assert any(rule.sources for rule in profile.match) or profile.name.startswith("x86-")


@pytest.mark.parametrize(
    ("field", "factors"),
    [
        ("max_frequency_hz", (1e6, 1e9)),
        ("memory_bandwidth_bytes_per_s", (1e9,)),
        ("power_watts", (1,)),
    ],
)
def test_a_figure_stands_in_the_words_it_rests_on(
    profile: DeviceProfile, field: str, factors: tuple[float, ...]
) -> None:
    fact: Fact = getattr(profile.facts, field)
    if fact.value is not None and fact.source is not None:
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", fact.source.quote)]
        assert any(fact.value == pytest.approx(number * factor) for number in numbers for factor in factors)


def test_a_profile_says_all_that_it_should(profile: DeviceProfile, repository: Path) -> None:
    assert profile.match and profile.native and profile.round_to_reason
    assert profile.agent.status != "unknown"
    assert (profile.agent.oldest_image is None) == (profile.agent.status == "not possible")
    assert profile.runtimes and set(profile.runtimes) <= set(profile.native)
    # TensorRT is named before its adapter comes.
    known = set(runtimes()) | {"tensorrt"}
    assert set(profile.native) <= known and set(profile.runs) <= known
    for run in profile.runs.values():
        assert (repository / run.by).exists(), f"{profile.name} says that {run.by} shows a run, and it is not there"
    assert len({mode.name for mode in profile.power_modes}) == len(profile.power_modes)


def test_the_families_are_there() -> None:
    assert len(load_profiles()) >= 20
    for family, least in (("raspberry-pi", 5), ("jetson", 8), ("x86", 5), ("graviton", 3), ("neoverse", 4)):
        assert sum(name.startswith(family) for name in load_profiles()) >= least


def test_every_profile_names_recipes_that_exist(profile: DeviceProfile) -> None:
    assert set(profile.recipes) <= set(default_recipes()) and len(profile.recipes) >= 6


def test_the_profile_of_an_unknown_device_is_marked_as_such() -> None:
    generic = match(DeviceFactsForMatching()).profile
    assert set(generic.recipes) <= set(default_recipes())
    assert generic.agent.status == "unknown" and generic.conditions.sustained and not generic.runs


@pytest.mark.parametrize(("name", "found"), BOARDS)
def test_a_board_matches_its_own_profile_and_no_other(name: str, found: DeviceFactsForMatching) -> None:
    matched = match(found)
    assert matched.profile.name == name and matched.reason
    hits = [profile for profile in load_profiles().values() if match(found, {profile.name: profile}).profile is profile]
    # Wider kinds may match too (an Altra is a Neoverse N1), but never with the same standing.
    assert [hit.name for hit in hits if hit.priority >= matched.profile.priority] == [name]


def test_every_rule_is_proven_by_a_board() -> None:
    for profile in load_profiles().values():
        own = [found for name, found in BOARDS if name == profile.name]
        for rule in profile.match:
            alone = profile.model_copy(update={"match": [rule]})
            assert any(match(found, {profile.name: alone}).profile is alone for found in own), (profile.name, rule)
        for rule in profile.match:
            for pattern in rule.compatible:
                alone = profile.model_copy(update={"match": [rule.model_copy(update={"compatible": [pattern]})]})
                assert any(match(found, {profile.name: alone}).profile is alone for found in own), (
                    profile.name,
                    pattern,
                )


def test_agent_and_runs_agree() -> None:
    ran = "runs: {onnxruntime: {kind: %s, date: 2026-11-25, by: somewhere}}\n"
    agent = "agent: {status: %s, reason: because it is so}\n"
    for text, said in (
        (MINIMAL + agent % "tested", "needs a run that is proven"),
        (MINIMAL + agent % "tested" + ran % "emulated", "needs a run that is proven"),
        (MINIMAL + agent % "not possible" + ran % "proven", "yet something ran"),
        (MINIMAL + agent % "perhaps", "agent.status is wrong"),
        (
            MINIMAL + "conditions: {power_mode: MAXN, sustained: true, reason: it is passively cooled}\n",
            "none of the power",
        ),
        (MINIMAL + "power_modes: [{name: 15W, watts: 15}]\n", r"power_modes\.0\.source is wrong"),
        (MINIMAL + "native: {onnxruntime: {dtypes: [int7], by: hope}}\n", r"native\.onnxruntime\.dtypes\.0"),
        (MINIMAL + "native: {onnxruntime: {dtypes: [], by: hope}}\n", r"native\.onnxruntime\.dtypes"),
    ):
        with pytest.raises(InvalidProfile, match=said):
            parse_profile(text, source="a.yaml")
    tested = parse_profile(MINIMAL + agent % "tested" + ran % "proven", source="a.yaml")
    assert (tested.ran("onnxruntime"), tested.ran("ncnn")) == ("proven on 2026-11-25", "never run")
    assert parse_profile(MINIMAL + ran % "emulated", source="a.yaml").ran("onnxruntime") == "emulated"


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
        (facts(machine="aarch64", arm_implementer="0x41", arm_part="0xd0c"), "neoverse-n1", "Arm part 0xd0c"),
        (facts(machine="aarch64", arm_implementer="0x41", arm_part="0xD4F"), "neoverse-v2", "0xD4F"),
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
        facts(device_tree_model="Raspberry Pi 2 Model B", device_tree_compatible=("raspberrypi,2-model-b",)),
        facts(device_tree_compatible=("nvidia,p2371-2180", "nvidia,tegra210")),
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
