"""What an agent does about a full disk. The full disk itself is mounted by tests/system/test_full_disk.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fleetfit.agent.disk import Reserve, disk_full, is_full, prove_room


def test_room_is_kept_and_given_up(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.hold()
    reserve.hold()
    assert (tmp_path / "reserve").stat().st_size == 64 << 10
    reserve.give_up()
    reserve.give_up()
    assert list(tmp_path.iterdir()) == []


def test_room_that_cannot_be_kept_is_no_error_unless_it_is_asked_for(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "nowhere" / "reserve")
    reserve.hold()
    with pytest.raises(FileNotFoundError):
        reserve.hold(strict=True)


def test_proving_that_there_is_room_leaves_an_empty_folder(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    prove_room(state)
    prove_room(state)
    assert list(state.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        prove_room(tmp_path / "file")


def test_what_counts_as_a_full_disk(tmp_path: Path) -> None:
    assert is_full(OSError(errno.ENOSPC, "")) and is_full(OSError(errno.EDQUOT, ""))
    assert not is_full(PermissionError(errno.EACCES, ""))
    error = disk_full(tmp_path)
    assert error.status == "RESOURCE_EXHAUSTED" and str(tmp_path) in error.message and "make room" in error.message
