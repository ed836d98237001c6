"""How a self-proof that somebody sent in becomes a line of the devices' table, and that those accepted hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.devices import ROOT, accept
from fleetfit.device_profiles.loader import PROFILES, load_profiles, parse_profile
from fleetfit.device_profiles.matching import facts_of, match
from fleetfit.device_profiles.schema import DeviceProfile
from fleetfit.proto.selfproof import CheckedRuntime, differences, unproven, unseal
from fleetfit.proto.v1 import snapshot_pb2

from ..proto.proofs import proof

PI = snapshot_pb2.DeviceSnapshot(machine="aarch64", device_tree_compatible=["raspberrypi,4-model-b", "brcm,bcm2711"])
AVX2 = snapshot_pb2.DeviceSnapshot(machine="x86_64", processor=snapshot_pb2.Processor(flags=["avx2", "fma", "sse2"]))


class Place:
    def __init__(self, folder: Path) -> None:
        self.profiles = folder / "profiles"
        shutil.copytree(PROFILES, self.profiles)
        (folder / "benchmarks" / "results").mkdir(parents=True)
        self.root = folder

    def accept(self, content: bytes) -> list[str]:
        sent = self.root / "sent.zip"
        sent.write_bytes(content)
        return accept(sent, profiles=self.profiles, root=self.root)

    def profile(self, name: str) -> DeviceProfile:
        return parse_profile((self.profiles / f"{name}.yaml").read_text(), source=name)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_proof_becomes_proven_on_its_day(place: Place) -> None:
    said = place.accept(proof(PI))
    by = "benchmarks/results/run-raspberry-pi-4-2026-11-20.zip"
    assert said[0] == f"raspberry-pi-4: onnxruntime proven on 2026-11-20, by {by}"
    after = place.profile("raspberry-pi-4")
    assert after.ran("onnxruntime") == "proven on 2026-11-20" and after.runs["onnxruntime"].by == by
    assert unseal((place.root / by).read_bytes()).snapshot == PI
    assert after.model_copy(update={"runs": {}}) == load_profiles()["raspberry-pi-4"].model_copy(update={"runs": {}})


def test_other_runs_stay_as_they_are_and_the_newer_counts(place: Place) -> None:
    before = place.profile("x86-avx2")
    lines = (place.profiles / "x86-avx2.yaml").read_text().splitlines()
    assert before.runs["onnxruntime"].by.endswith(".json")
    place.accept(proof(AVX2))
    after = place.profile("x86-avx2")
    assert after.runs["onnxruntime"].by.endswith("run-x86-avx2-2026-11-20.zip")
    assert after.model_copy(update={"runs": {}}) == before.model_copy(update={"runs": {}})
    # Nothing else of the file has moved.
    now = (place.profiles / "x86-avx2.yaml").read_text().splitlines()
    assert len(now) == len(lines) and sum(a != b for a, b in zip(now, lines, strict=True)) == 2


def test_what_was_emulated_is_never_called_proven(place: Place) -> None:
    emulated = snapshot_pb2.DeviceSnapshot()
    emulated.CopyFrom(PI)
    emulated.emulated = True
    place.accept(proof(emulated))
    assert place.profile("raspberry-pi-4").ran("onnxruntime") == "emulated"
    place.accept(proof(PI))
    place.accept(proof(emulated))
    assert place.profile("raspberry-pi-4").ran("onnxruntime") == "proven on 2026-11-20"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello", "no self-proof"),
        (proof(snapshot_pb2.DeviceSnapshot(machine="riscv64")), "no profile is declared for this board"),
        (proof(PI, board={"model": "Raspberry Pi 5"}), "do not follow from its samples: the board that it speaks of"),
        (
            proof(
                PI,
                runtimes=[
                    CheckedRuntime(
                        name="onnxruntime",
                        available=True,
                        contract={"a": "broke"},
                        figures=unseal(proof(PI)).statement.runtimes[0].figures,
                    )
                ],
            ),
            "it shows no runtime at work",
        ),
    ],
    ids=["none", "unknown board", "untrue", "broken"],
)
def test_what_shows_nothing_changes_nothing(place: Place, content: bytes, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        place.accept(content)
    assert all((place.profiles / path.name).read_bytes() == path.read_bytes() for path in PROFILES.glob("*.yaml"))
    assert not list((place.root / "benchmarks" / "results").iterdir())


def test_every_proof_that_a_profile_names_holds() -> None:
    for profile in load_profiles().values():
        for runtime, run in profile.runs.items():
            if run.by.endswith(".zip"):
                found = unseal((ROOT / run.by).read_bytes())
                assert match(facts_of(found.snapshot)).profile.name == profile.name
                assert differences(found) == [] and unproven(found)[runtime] == ""
                assert (run.kind == "emulated") == found.statement.emulated
                assert run.date == found.statement.made.date()
