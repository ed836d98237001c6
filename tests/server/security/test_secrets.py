from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import Unauthenticated
from fleetfit.proto.trust import parse_token
from fleetfit.server.security.credentials import credential_file, leave_credential, remove_credential
from fleetfit.server.security.people import People
from fleetfit.server.security.secrets import LENGTH, is_whole, new_secret, stored_form
from fleetfit.server.storage.database import Database

from ..databases import open_database

DIGEST = "a" * 64
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(tmp_path / "fleetfit.db")
    yield opened
    opened.close()


def people(database: Database) -> People:
    found = People(database, DIGEST)
    found.load()
    return found


def test_secrets_are_whole_tokens_and_never_the_same() -> None:
    made = {new_secret() for _ in range(2000)}
    assert len(made) == 2000
    for secret in made:
        assert is_whole(secret) and len(secret) == LENGTH and not secret.startswith("-")
        assert parse_token(f"{secret}.{DIGEST}").secret == secret


@given(st.integers(0, LENGTH - 1), st.sampled_from(ALPHABET))
def test_any_one_changed_character_is_seen(at: int, character: str) -> None:
    secret = new_secret()
    changed = secret[:at] + character + secret[at + 1 :]
    assert is_whole(changed) == (changed == secret)


@given(st.text(max_size=60))
def test_any_text_can_be_asked_about(text: str) -> None:
    assert not is_whole(text)


def test_the_local_token_outlives_restarts(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "local.token"
    token = people(database).local_token(file)
    again = people(database)
    assert again.local_token(file) == token
    assert again.identify(f"Bearer {token}") == "local"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_local_token_that_was_lost_or_changed_is_made_anew(tmp_path: Path, database: Database) -> None:
    file = tmp_path / "local.token"
    old = people(database).local_token(file)
    file.write_text("nonsense")
    keepers = people(database)
    new = keepers.local_token(file)
    assert new != old
    keepers.identify(f"Bearer {new}")
    with pytest.raises(Unauthenticated):
        keepers.identify(f"Bearer {old}")


def test_the_remote_token_is_told_once_and_ends_when_renewed(database: Database) -> None:
    keepers = people(database)
    token = keepers.remote_token()
    assert token is not None and parse_token(token).ca_digest == DIGEST
    assert people(database).remote_token() is None
    renewed = keepers.remote_token(renew=True)
    assert renewed is not None
    assert keepers.identify(f"bearer {renewed}") == "remote"
    with pytest.raises(Unauthenticated, match="not one of this server's"):
        keepers.identify(f"Bearer {token}")


def test_the_database_holds_no_token(tmp_path: Path, database: Database) -> None:
    token = people(database).remote_token()
    assert token is not None
    secret = token.split(".")[0]
    content = b"".join(file.read_bytes() for file in tmp_path.glob("fleetfit.db*"))
    assert secret.encode() not in content
    assert stored_form(secret).encode() in content


@given(st.text(max_size=80))
def test_any_header_is_refused_in_one_sentence(text: str) -> None:
    keepers = People.__new__(People)
    keepers._names = {stored_form(new_secret()): "local"}
    for header in (text, f"Bearer {text}"):
        with pytest.raises(Unauthenticated, match="FLEETFIT_TOKEN"):
            keepers.identify(header)


def test_the_credential_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETFIT_CONFIG_DIR", str(tmp_path / "config"))
    file = leave_credential("127.0.0.1:7600", b"ca", "secret.digest")
    assert file == tmp_path / "config" / "servers" / "127.0.0.1_7600.json" == credential_file("127.0.0.1:7600")
    assert json.loads(file.read_text()) == {"address": "127.0.0.1:7600", "ca_pem": "ca", "token": "secret.digest"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    remove_credential(file, "another server's")
    assert file.exists()
    remove_credential(file, "secret.digest")
    assert list(file.parent.iterdir()) == []
    remove_credential(file, "secret.digest")
