from __future__ import annotations

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
    # Nothing was tried on a board yet: a run that is claimed has its record beside it.
    proven = [line for line in text.splitlines() if "proven on" in line and line.startswith("|")]
    assert len(proven) == sum(bool(profile.runs) for profile in load_profiles().values())
