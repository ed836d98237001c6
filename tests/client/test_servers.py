from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetfit.client.servers import find_server, local_credentials
from fleetfit.core.errors import InvalidInput, NotFound, PermissionDenied, Unauthenticated, Unavailable

TOKEN = "a" * 40 + "." + "0" * 64


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETFIT_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("FLEETFIT_SERVER", raising=False)
    monkeypatch.delenv("FLEETFIT_TOKEN", raising=False)
    return tmp_path


def leave(config: Path, address: str, secret: str = "secret", mode: int = 0o600) -> Path:
    folder = config / "servers"
    folder.mkdir(exist_ok=True)
    file = folder / f"{address.replace(':', '_')}.json"
    file.write_text(json.dumps({"address": address, "ca_pem": "PEM", "token": f"{secret}.{'0' * 64}"}))
    file.chmod(mode)
    return file


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_with_nothing_known_the_sentence_says_both_ways_on(config: Path) -> None:
    with pytest.raises(NotFound, match="`fleetfit server`.*FLEETFIT_SERVER and FLEETFIT_TOKEN"):
        find_server()


def test_the_only_server_of_this_user_is_taken(config: Path) -> None:
    leave(config, "127.0.0.1:7600")
    found = find_server()
    assert (found.address, found.ca_pem, found.secret) == ("127.0.0.1:7600", b"PEM", "secret")


def test_the_secret_does_not_show_in_logs(config: Path) -> None:
    leave(config, "127.0.0.1:7600", secret="hidden-secret")
    assert "hidden-secret" not in repr(find_server())


@pytest.mark.parametrize("asked", ["localhost:7600", "127.0.0.1:7600"])
def test_an_address_finds_its_credential(config: Path, asked: str) -> None:
    leave(config, "127.0.0.1:7600", "right")
    leave(config, "127.0.0.1:7700", "wrong")
    found = find_server(asked)
    assert (found.address, found.secret) == (asked, "right")


def test_the_environment_names_the_server(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(config, "127.0.0.1:7600", "one")
    leave(config, "127.0.0.1:7700", "two")
    monkeypatch.setenv("FLEETFIT_SERVER", "127.0.0.1:7700")
    assert find_server().secret == "two"
    assert find_server("127.0.0.1:7600").secret == "one", "an option is stronger"


def test_a_server_that_listens_everywhere_is_dialled_here_and_found_by_any_name(config: Path) -> None:
    leave(config, "0.0.0.0:7600")
    found = find_server()
    assert found.address == "127.0.0.1:7600" and found.listens_everywhere
    assert find_server("192.168.1.10:7600").address == "192.168.1.10:7600"
    with pytest.raises(Unauthenticated):
        find_server("192.168.1.10:7601")


def test_among_several_the_one_that_answers_is_taken(config: Path, listening: str) -> None:
    leave(config, "127.0.0.1:1", "gone")
    leave(config, listening, "alive")
    assert find_server().secret == "alive"


def test_several_that_answer_must_be_told_apart(config: Path, listening: str) -> None:
    leave(config, listening)
    leave(config, listening.replace("127.0.0.1", "localhost"))
    with pytest.raises(InvalidInput, match="several servers run here .*--server"):
        find_server()


def test_none_that_answers_says_which_are_known(config: Path) -> None:
    leave(config, "127.0.0.1:1")
    leave(config, "127.0.0.1:2")
    with pytest.raises(NotFound, match=r"none of the servers .*127\.0\.0\.1:[12], 127"):
        find_server()


def test_a_credential_that_others_can_change_is_refused(config: Path) -> None:
    leave(config, "127.0.0.1:7600", mode=0o666)
    with pytest.raises(PermissionDenied, match="can be changed by other users"):
        find_server()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"address": "nowhere", "ca_pem": "", "token": ""}'])
def test_a_damaged_credential_says_what_to_do(config: Path, content: str) -> None:
    leave(config, "127.0.0.1:7600").write_text(content)
    with pytest.raises(InvalidInput, match="delete it and restart|is not an address"):
        find_server()


def test_an_address_without_a_credential_asks_for_a_token(config: Path) -> None:
    with pytest.raises(Unauthenticated, match="FLEETFIT_TOKEN"):
        find_server("10.0.0.1:7600")


def test_a_token_without_an_address_asks_for_one(config: Path) -> None:
    with pytest.raises(InvalidInput, match="FLEETFIT_SERVER or --server"):
        find_server(token=TOKEN)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:99999", ":7600", "host:port"])
def test_what_is_no_address_is_refused(config: Path, address: str) -> None:
    if address:
        with pytest.raises(InvalidInput, match="is not an address"):
            find_server(address, TOKEN)


def test_a_token_that_is_not_whole_is_refused_before_anything_is_dialled(config: Path) -> None:
    with pytest.raises(InvalidInput, match="the token is not whole"):
        find_server("127.0.0.1:1", TOKEN[:-1])


def test_a_token_for_a_server_that_is_not_there(config: Path) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 cannot be reached"):
        find_server("127.0.0.1:1", TOKEN)


def test_a_folder_that_cannot_be_read_is_like_none(config: Path) -> None:
    (config / "servers").write_text("a file where a folder should be")
    assert local_credentials() == []
    assert os.getuid() == (config / "servers").stat().st_uid
