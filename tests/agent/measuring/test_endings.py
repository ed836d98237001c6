from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fleetfit.agent.measuring.endings import Status, explain
from fleetfit.core.children import ChildOutcome

NOT_LOADABLE = Status.MEASUREMENT_STATUS_NOT_LOADABLE
OUT_OF_MEMORY = Status.MEASUREMENT_STATUS_OUT_OF_MEMORY
TIMED_OUT = Status.MEASUREMENT_STATUS_TIMED_OUT
CRASHED = Status.MEASUREMENT_STATUS_CRASHED
DISK_FULL = Status.MEASUREMENT_STATUS_DISK_FULL
TRACE = "Traceback (most recent call last):\n  File 'x.py', line 3\n"


@pytest.mark.parametrize(
    ("kind", "stderr", "status", "words"),
    [
        ("out_of_memory", "", OUT_OF_MEMORY, "needs more memory than the device has free"),
        ("timed_out", "", TIMED_OUT, "did not finish within the time"),
        ("timed_out", "std::bad_alloc", TIMED_OUT, "did not finish"),
        ("crashed", "", CRASHED, "the runtime crashed on the build"),
        ("crashed", "terminate called: std::bad_alloc", OUT_OF_MEMORY, "more memory"),
        ("failed", TRACE + "MemoryError", OUT_OF_MEMORY, "more memory"),
        ("failed", "OSError: [Errno 12] Cannot allocate memory", OUT_OF_MEMORY, "more memory"),
        ("failed", TRACE + "RuntimeException: Failed to allocate memory for requested buffer", OUT_OF_MEMORY, "memory"),
        ("failed", TRACE + "KeyError: 'x'", CRASHED, r"unexpected error \(KeyError: 'x'\)"),
        ("failed", "", CRASHED, r"unexpected error \(exit code 1, and not a word\)$"),
        ("cancelled", "", CRASHED, "stopped from outside"),
        ("a kind of a later version", "", CRASHED, "unexpected error"),
        ("ok", "", CRASHED, "unexpected error"),
        ("failed", TRACE + "OSError: [Errno 28] No space left on device: 'a'", DISK_FULL, "disk is full; make room"),
        ("crashed", "No space left on device", DISK_FULL, "disk is full"),
    ],
)
def test_each_way_to_end_is_a_status_and_a_sentence(
    tmp_path: Path, kind: str, stderr: str, status: Status.ValueType, words: str
) -> None:
    failure = explain(tmp_path / "solo-0.pb", ChildOutcome(kind, 1, stderr))
    assert failure.status == status
    assert re.search(words, failure.message)
    assert "Traceback" not in failure.message and "\n" not in failure.message


def test_what_a_trial_says_itself_is_the_sentence(tmp_path: Path) -> None:
    said = {"code": "INVALID_MODEL", "message": "the build takes batches of 4 only"}
    (tmp_path / "solo-0.error").write_text(json.dumps(said))
    failure = explain(tmp_path / "solo-0.pb", ChildOutcome("failed", 3, "a warning of the runtime"))
    assert (failure.status, failure.message) == (NOT_LOADABLE, said["message"])
    assert str(failure) == said["message"]


def test_another_trials_word_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "solo-0.error").write_text('{"message": "not this one"}')
    assert explain(tmp_path / "pair-0.pb", ChildOutcome("crashed", -11)).status == CRASHED


@pytest.mark.parametrize("half", ["", '{"code": "INV', "[]", "{}"])
def test_a_word_that_a_full_disk_cut_off_is_left_aside(tmp_path: Path, half: str) -> None:
    (tmp_path / "solo-0.error").write_text(half)
    outcome = ChildOutcome("failed", 1, "OSError: [Errno 28] No space left on device")
    assert explain(tmp_path / "solo-0.pb", outcome).status == DISK_FULL


def test_a_long_last_line_is_cut(tmp_path: Path) -> None:
    assert len(explain(tmp_path / "a.pb", ChildOutcome("failed", 1, "x" * 5000)).message) < 300
