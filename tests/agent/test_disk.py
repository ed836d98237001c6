"""What an agent does about a full disk. The full disk itself is mounted by tests/system/test_full_disk.py."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fleetfit.agent import disk
from fleetfit.agent.disk import Reserve, disk_full, give_temporary_folder, is_full, prove_room


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


@pytest.mark.parametrize("usable", [True, False])
def test_temporary_files_go_to_the_agents_folder_only_where_no_other_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    # A copy, and the folder that was found: what is set here must not stay.
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in disk._TOLD})
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    monkeypatch.setattr(disk, "_USUAL", (str(tmp_path),) if usable else (str(tmp_path / "nowhere"),))
    folder = tmp_path / "state" / "tmp"
    for _ in range(2):
        os.environ.pop("TMPDIR", None)
        give_temporary_folder(folder, anew=True)
        assert ("TMPDIR" in os.environ, folder.exists()) == (not usable, not usable)
        if not usable:
            assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(folder)
            assert not any(folder.iterdir()), "what an earlier life left"
            (folder / "left").touch()


_ON_A_READ_ONLY_SYSTEM = """
import sys, tempfile
from pathlib import Path
from fleetfit.agent.disk import give_temporary_folder
from fleetfit.core.hostlock import host_lock, lock_path
give_temporary_folder(Path("/mnt/state/tmp"))
with host_lock(limit_s=5), tempfile.TemporaryFile():
    print(lock_path())
"""


def test_a_system_that_is_read_only_but_for_one_folder_has_a_place_for_the_lock(tmp_path: Path) -> None:
    """A real one: nothing can be written, the working folder neither, but what is mounted below /mnt."""
    places = [one for one in ("/tmp", "/var/tmp", "/run/lock") if Path(one).is_dir()]
    read_only = " && ".join(f"mount --bind {one} {one} && mount -o remount,bind,ro {one}" for one in places)
    line = f'mount --bind "$0" /mnt && {read_only} && cd /proc && exec "$1" -c "$2"'
    words = ["unshare", "--mount", "sh", "-c", line, str(tmp_path), sys.executable, _ON_A_READ_ONLY_SYSTEM]
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("mounting needs root")
    kept = {k: v for k, v in os.environ.items() if k not in (*disk._TOLD, "FLEETFIT_HOST_LOCK")}
    done = subprocess.run(words, env=kept, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("/mnt/state/tmp/fleetfit-host.lock\n", "")
    assert (tmp_path / "state" / "tmp" / "fleetfit-host.lock").exists()
