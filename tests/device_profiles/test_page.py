from __future__ import annotations

import json
from pathlib import Path

from benchmarks.devices import PAGE, written
from fleetfit.device_profiles.loader import load_profiles


def test_the_page_says_what_the_profiles_say() -> None:
    assert written() == PAGE.read_text(encoding="utf-8"), "run `python -m benchmarks.devices`"


def test_every_profile_stands_in_every_table(repository: Path) -> None:
    text = (repository / "docs/devices/README.md").read_text(encoding="utf-8")
    for profile in load_profiles().values():
        assert f"| {profile.title} | {profile.agent.status} |" in text
        assert text.count(f"| `{profile.name}` |") == 2 and profile.agent.reason in text


def test_what_is_claimed_to_have_run_has_its_record_beside_it(repository: Path) -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for profile in load_profiles().values():
        (row,) = [line for line in rows if line.startswith(f"| {profile.title} | {profile.agent.status} |")]
        kinds = [run.kind for run in profile.runs.values()]
        assert (row.count("| proven on"), row.count("| emulated")) == (kinds.count("proven"), kinds.count("emulated"))
        for run in profile.runs.values():
            assert (repository / run.by).is_file()
            # A record of what was emulated says so by its name.
            assert Path(run.by).stem.endswith("-emulated") == (run.kind == "emulated")


def test_the_emulated_board_ran_what_its_profile_names(repository: Path) -> None:
    profile = load_profiles()["raspberry-pi-4"]
    record = json.loads((repository / "benchmarks/results/run-raspberry-pi-4-emulated.json").read_text())
    assert record["profile"] == profile.name and record["emulator"] and record["because"]
    for runtime in record["runtimes"]:
        assert profile.ran(runtime) != "never run"
        assert any(measured.endswith(f" in {runtime}") for measured in record["measured"])
