from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fleetfit.agent.identity import Identity, load_identity, require_identity, save_identity
from fleetfit.core.errors import Conflict, FleetfitError, NotFound

IDENTITY = Identity("dev1", "bench", "host:7600", "host:7601", b"key", b"certificate", b"ca")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_identity(tmp_path, IDENTITY)
    assert load_identity(tmp_path) == IDENTITY


def test_the_key_is_nobody_elses(tmp_path: Path) -> None:
    save_identity(tmp_path, IDENTITY)
    assert stat.S_IMODE((tmp_path / "identity" / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700
    assert b"key" not in repr(IDENTITY).encode().replace(b"key_pem", b"")


def test_a_device_that_is_not_enrolled_says_how_to(tmp_path: Path) -> None:
    assert load_identity(tmp_path) is None
    with pytest.raises(NotFound, match="fleetfit devices enroll"):
        require_identity(tmp_path)


@pytest.mark.parametrize("damage", ["identity.json", "key.pem", "ca.pem"])
def test_a_damaged_identity_says_what_to_do(tmp_path: Path, damage: str) -> None:
    save_identity(tmp_path, IDENTITY)
    (tmp_path / "identity" / damage).unlink()
    with pytest.raises(Conflict, match="enrol again"):
        load_identity(tmp_path)


def test_an_interrupted_save_leaves_no_identity(tmp_path: Path) -> None:
    (tmp_path / "identity.new").mkdir()
    (tmp_path / "identity.new" / "key.pem").write_text("half")
    assert load_identity(tmp_path) is None
    save_identity(tmp_path, IDENTITY)
    assert load_identity(tmp_path) == IDENTITY


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetfitError, match="--state"):
        save_identity(tmp_path / "file", IDENTITY)
