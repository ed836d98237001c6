from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import ssl
import sys
from pathlib import Path

import pytest

from fleetfit import cli
from fleetfit.agent import __main__ as resident
from fleetfit.agent.command import default_state
from fleetfit.agent.identity import load_identity, save_identity
from fleetfit.proto.trust import public_key_digest

from ..server.services.site import Site, visit
from .desk import Desk

TOKEN = "A" * 32 + "." + "0" * 64


@pytest.fixture
def becomes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that the process became."""
    found: list[list[str]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable and environment["MALLOC_ARENA_MAX"]
        found.append(arguments[1:])

    monkeypatch.setattr(os, "execve", execve)
    return found


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state of a device that is enrolled."""
    save_identity(tmp_path / "state", Desk(tmp_path / "desk").enrol())
    return tmp_path / "state"


def own_digest(state: Path) -> str:
    """What tokens of the device's own server end in."""
    identity = load_identity(state)
    assert identity is not None
    return public_key_digest(ssl.PEM_cert_to_DER_cert(identity.ca_pem.decode()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "not enrolled yet and --server and --token are missing"),
        (["--server", "host:1"], "not enrolled yet and --token is missing"),
        (["--token", TOKEN], "not enrolled yet and --server is missing"),
        (["--threads", "-1"], "threads"),
        (["--threads", "many"], "threads"),
        (["--cache-mb", "1"], "cache-mb"),
        (["--no-such-option"], "no-such-option"),
        (["surgeon"], "surgeon"),
    ],
)
def test_wrong_usage_is_a_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]], options: list[str], words: str
) -> None:
    assert cli.run(["agent", "--state", str(tmp_path), *options]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not becomes


@pytest.mark.parametrize(
    ("server", "token", "words"),
    [
        ("127.0.0.1:1", "half a token", "the token is not whole"),
        ("127.0.0.1:1", TOKEN, "cannot be reached"),
        ("nowhere", TOKEN, "'nowhere' is not an address"),
    ],
)
def test_an_enrolment_that_fails_is_a_sentence_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]], server: str, token: str, words: str
) -> None:
    arguments = ["agent", "--state", str(tmp_path), "--server", server, "--token", token, "--json"]
    assert cli.run(arguments) == 1
    said = capsys.readouterr()
    assert words in json.loads(said.out)["error"]["message"] and said.err.count("\n") == 1
    assert not becomes and load_identity(tmp_path) is None


def test_a_device_that_is_enrolled_becomes_the_resident_agent(
    state: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]]
) -> None:
    assert cli.run(["agent", "--state", str(state)]) == 0
    assert capsys.readouterr().out == "already enrolled as bench at 127.0.0.1:1\n"
    plain = ["-m", "fleetfit.agent", "--state", str(state), "--cache-mb", "2048", "--threads", "0"]
    assert becomes == [plain]


def test_options_reach_the_resident_agent_and_a_token_is_not_needed_twice(
    state: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]]
) -> None:
    token = TOKEN[:33] + own_digest(state)
    options = ["--threads", "2", "--cache-mb", "64", "--emulated", "--once", "--json", "--token", token]
    assert cli.run(["agent", "--state", str(state), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["device"], said["device_id"]) == ("bench", "dev1")
    assert "the token was not used" in said["message"]
    assert becomes[0][2:] == [
        "--state", str(state), "--cache-mb", "64", "--threads", "2", "--emulated", "--once", "--json",
    ]  # fmt: skip


@pytest.mark.parametrize("token", ["half a token", TOKEN])
def test_a_token_of_another_server_is_not_passed_over(
    state: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]], token: str
) -> None:
    assert cli.run(["agent", "--state", str(state), "--token", token]) == 1
    says = (
        "is not whole"
        if token != TOKEN
        else f"works for another server, at 127.0.0.1:1 with another CA, .* remove {state}/identity"
    )
    assert re.search(says, capsys.readouterr().err)
    assert not becomes and load_identity(state) is not None


def test_a_damaged_ca_is_said_where_a_token_is_compared_with_it(
    state: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]]
) -> None:
    token = TOKEN[:33] + own_digest(state)
    (state / "identity" / "ca.pem").write_text("no certificate")
    assert cli.run(["agent", "--state", str(state), "--token", token]) == 1
    assert f"the identity in {state}/identity is damaged" in capsys.readouterr().err
    assert not becomes


def test_caps_reach_the_resident_agent_and_nonsense_does_not(
    state: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]]
) -> None:
    options = ["--cores", "0-1", "--memory-mb", "300", "--beside", "camera"]
    assert cli.run(["agent", "--state", str(state), *options]) == 0
    assert becomes[0][-6:] == ["--memory-mb", "300", "--cores", "0-1", "--beside", "camera"]
    capsys.readouterr()
    assert cli.run(["agent", "--state", str(state), "--cores", "all"]) == 2
    assert "'all' names no processors" in capsys.readouterr().err
    assert len(becomes) == 1


def test_a_device_enrols_once_and_for_real(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]]
) -> None:
    async def scenario(site: Site) -> None:
        arguments = ["agent", "--state", str(tmp_path / "state"), "--server", site.people.address, "--name", "pi"]
        token = await site.new_token()
        assert await asyncio.to_thread(cli.run, [*arguments, "--token", token]) == 0
        assert capsys.readouterr().out == f"enrolled as pi at {site.people.address}\n"
        identity = load_identity(tmp_path / "state")
        assert identity is not None
        assert (identity.name, identity.server) == ("pi", site.people.address)
        assert identity.agent_address == site.agents.address and identity.ca_pem == site.authority.pem
        # A token is for one device.
        arguments[2] = str(tmp_path / "another")
        assert await asyncio.to_thread(cli.run, [*arguments, "--token", token]) == 1
        assert load_identity(tmp_path / "another") is None
        assert len(becomes) == 1

    visit(tmp_path / "site", scenario)


def test_enrolling_alone_becomes_nothing_and_is_done_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], becomes: list[list[str]]
) -> None:
    async def scenario(site: Site) -> None:
        arguments = ["agent", "--state", str(tmp_path / "state"), "enroll", "--json", "--server", site.people.address]
        assert await asyncio.to_thread(cli.run, arguments) == 2
        capsys.readouterr()
        arguments += ["--name", "pi", "--token", await site.new_token()]
        for message in ("enrolled as pi at", "already enrolled as pi at"):
            assert await asyncio.to_thread(cli.run, arguments) == 0
            said = json.loads(capsys.readouterr().out)
            assert said["device"] == "pi" and said["message"].startswith(message)

    visit(tmp_path / "site", scenario)
    assert not becomes


def test_the_state_has_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETFIT_AGENT_STATE", raising=False)
    assert default_state().parts[-2:] == ("fleetfit", "agent")
    monkeypatch.setenv("FLEETFIT_AGENT_STATE", str(tmp_path))
    assert default_state() == tmp_path


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the resident agent logs, without its handler for standard error."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    return caplog


def test_a_resident_agent_without_identity_ends_with_a_sentence(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    assert resident.main(["--state", str(tmp_path)]) == 1
    assert "this device is not enrolled" in log.text and "fleetfit devices enroll" in log.text


def test_two_agents_do_not_share_a_folder(state: Path, log: pytest.LogCaptureFixture) -> None:
    with resident._alone(state):
        assert resident.main(["--state", str(state)]) == 1
    assert "another agent already works in" in log.text and "--state" in log.text
    with resident._alone(state):
        pass


def test_a_resident_agent_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    async def run() -> None:
        desk = Desk(tmp_path / "desk")
        await desk.open()
        save_identity(tmp_path / "state", desk.enrol())
        arguments = ["-m", "fleetfit.agent", "--state", str(tmp_path / "state"), "--threads", "1", "--json"]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.PIPE)
        try:
            await desk.until(lambda: "LeaseTask" in desk.calls)
            process.send_signal(signal.SIGTERM)
            _, said = await asyncio.wait_for(process.communicate(), 20)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await desk.shut()
        assert process.returncode == 0
        lines = [json.loads(line) for line in said.splitlines()]
        assert [line["message"] for line in lines] == [f"connected to {desk.address} as bench"]
        assert desk.hellos[0].snapshot.threads == 1 and desk.hellos[0].snapshot.runtimes

    asyncio.run(run())
