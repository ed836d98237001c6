from __future__ import annotations

import asyncio
import json
from pathlib import Path

from fleetfit.agent.silence import silence_limit_s, while_it_tells
from fleetfit.agent.spool import WAITING
from fleetfit.core.children import ChildOutcome
from fleetfit.proto.methods import for_emulated, named_method

LIMIT_S = 1.0
GOOD = ChildOutcome("ok", 0)


def outcome(folder: Path, *said: str, every_s: float) -> ChildOutcome:
    """How a child is said to have ended that says one thing after another, and then has done its work."""
    ended: list[str] = []

    async def child() -> ChildOutcome:
        try:
            for activity in said:
                fresh = folder / "fresh"
                fresh.write_text(json.dumps({"activity": activity, "fraction": 0}))
                fresh.replace(folder / "progress.json")
                await asyncio.sleep(every_s)
            ended.append("by itself")
            return GOOD
        finally:
            ended.append("gone")

    found = asyncio.run(while_it_tells(child(), folder / "progress.json", LIMIT_S))
    assert ended[-1] == "gone" and (found is GOOD) == ("by itself" in ended)
    return found


def test_a_child_that_goes_on_telling_may_take_as_long_as_it_needs(tmp_path: Path) -> None:
    # The same words again and again: a trial that goes on has no others.
    assert outcome(tmp_path, *["measuring"] * 8, every_s=LIMIT_S / 4) is GOOD


def test_waiting_for_the_host_is_no_silence(tmp_path: Path) -> None:
    assert outcome(tmp_path, WAITING, every_s=2 * LIMIT_S) is GOOD


def test_a_child_that_falls_silent_is_ended(tmp_path: Path) -> None:
    found = outcome(tmp_path, "measuring the build alone", every_s=60)
    assert found.kind == "timed_out"
    assert found.stderr_tail == "no sign of life for 1 s while measuring the build alone"


def test_a_child_that_never_says_anything_is_ended(tmp_path: Path) -> None:
    async def child() -> ChildOutcome:
        await asyncio.sleep(60)
        return GOOD

    found = asyncio.run(while_it_tells(child(), tmp_path / "progress.json", LIMIT_S))
    assert (found.kind, found.stderr_tail) == ("timed_out", "no sign of life for 1 s while starting")


def test_the_limit_leaves_a_trial_its_own() -> None:
    for method in (named_method("standard"), named_method("quick"), for_emulated(named_method("standard"))):
        assert silence_limit_s(method) > method.child_limit_ns / 1e9 + 30
