"""Tokens that are wrong, used or changed, servers that are others, versions that are too old."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

import fleetfit
from fleetfit.agent.identity import Identity, load_identity
from fleetfit.client.client import Client
from fleetfit.core.errors import VersionTooOld
from fleetfit.proto.channels import CLIENT_OPTIONS, agent_credentials, people_credentials
from fleetfit.proto.status import from_rpc_error
from fleetfit.proto.trust import fetch_ca, parse_token
from fleetfit.proto.v1 import enrolment_pb2, enrolment_pb2_grpc, work_pb2, work_pb2_grpc

from .conftest import Fleet, wait_for
from .refusals import check_log, check_sentence, nothing_left, refused, refusing, token_of

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Another server, with another CA."""
    fleet = Fleet(tmp_path_factory.mktemp("foreign"), ("--method", "quick"))
    try:
        fleet.start_server()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="module")
def spent(standing: Fleet) -> str:
    """A token that the device `spent` enrolled with. Its agent has ended."""
    token: str = standing.run("devices", "enroll", "--json").json["token"]
    state = standing.root / "agents" / "spent"
    arguments = ["-m", "fleetfit", "agent", "--server", standing.address, "--token", token, "--name", "spent", "--json"]
    standing._spawn("spent", [*arguments, "--state", str(state)])
    wait_for(lambda: "connected to" in standing.log("spent"), "the device to connect")
    assert standing.stop("spent") == 0
    return token


@pytest.fixture(autouse=True)
def client(standing: Fleet, spent: str) -> Iterator[Client]:
    with nothing_left(standing) as client:
        yield client


def enrol_raw(fleet: Fleet, secret: str, **changed: Any) -> grpc.StatusCode:
    """The status of an enrolment that must be refused, asked for by a stub."""
    ca_pem = fetch_ca(fleet.address, parse_token(token_of(fleet)).ca_digest)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raw")])
    signing = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    wanted = {
        "secret": secret,
        "protocol_version": 1,
        "signing_request_pem": signing.public_bytes(Encoding.PEM).decode(),
    }
    request = enrolment_pb2.EnrolRequest(**wanted | changed)
    with grpc.secure_channel(fleet.address, people_credentials(ca_pem), options=CLIENT_OPTIONS) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(request, timeout=20)
    check_sentence(from_rpc_error(caught.value).message)
    code: grpc.StatusCode = caught.value.code()
    return code


def changed(token: str) -> str:
    """A token with one letter of its secret changed."""
    return ("B" if token[0] == "A" else "A") + token[1:]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda token: "abc", "INVALID_INPUT", "the token is not whole: .*; copy it again"),
        (lambda token: token[:-3], "INVALID_INPUT", "the token is not whole: .*; copy it again"),
        (changed, "UNAUTHENTICATED", "was changed or cut off on its way here; copy the whole line again"),
        (
            lambda token: token[:-64] + "0" * 64,
            "PERMISSION_DENIED",
            "is not the one that made this token .* make a new",
        ),
        (lambda token: token, "UNAUTHENTICATED", "used before, .*; make a new one with `fleetfit devices enroll`"),
    ],
    ids=["no token", "cut off", "changed", "another CA's digest", "used"],
)
def test_a_token_that_does_not_enrol(
    change: Any, error: str, says: str, standing: Fleet, spent: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    arguments = ("agent", "--server", standing.address, "--token", change(spent), "--state", str(state))
    refused(standing, *arguments, error=error, says=says)
    assert not (state / "identity").exists()


def test_the_statuses_of_tokens_that_do_not_enrol(standing: Fleet, foreign: Fleet, spent: str) -> None:
    other = foreign.run("devices", "enroll", "--json").json["token"]
    for token in (changed(spent), other, spent):
        assert enrol_raw(standing, token.split(".")[0]) is grpc.StatusCode.UNAUTHENTICATED


def test_a_token_is_never_sent_to_a_server_of_another_ca(standing: Fleet, foreign: Fleet, tmp_path: Path) -> None:
    token = standing.run("devices", "enroll", "--json").json["token"]
    says = "is not the one that made this token .*; nothing was sent to it: check the address, or make a new token"
    arguments = ("--token", token, "--state", str(tmp_path / "state"))
    refused(standing, "agent", "--server", foreign.address, *arguments, error="PERMISSION_DENIED", says=says)
    assert "Enrolment" not in foreign.log("server")
    with refusing("PERMISSION_DENIED", says):
        fleetfit.connect(foreign.address, token_of(standing))


def test_a_server_that_is_not_there(standing: Fleet, tmp_path: Path) -> None:
    arguments = ("--token", token_of(standing), "--state", str(tmp_path / "state"))
    says = r"127\.0\.0\.1:1 cannot be reached \(Connection refused\); check the address and that the server runs"
    refused(standing, "agent", "--server", "127.0.0.1:1", *arguments, error="UNAVAILABLE", says=says)
    says = "there is no credential for 127.0.0.1:1 on this machine; set FLEETFIT_TOKEN"
    refused(standing, "models", "list", "--server", "127.0.0.1:1", error="UNAUTHENTICATED", says=says)


def test_people_with_a_wrong_token(standing: Fleet, foreign: Fleet, spent: str) -> None:
    good = token_of(standing)
    elsewhere = token_of(foreign).split(".")[0] + "." + good.split(".")[1]
    for token, says in (
        (changed(good), "was changed or cut off on its way here; set FLEETFIT_TOKEN"),
        (elsewhere, "is not one of this server's; set FLEETFIT_TOKEN"),
        (spent, "is not one of this server's; set FLEETFIT_TOKEN"),
    ):
        with refusing("UNAUTHENTICATED", says), fleetfit.connect(standing.address, token) as client:
            client.models()
    # And as a process.
    said = standing.run(
        *("models", "list", "--server", standing.address, "--json"),
        code=1,
        environment={"FLEETFIT_TOKEN": changed(good)},
    )
    assert said.json["error"]["code"] == "UNAUTHENTICATED"
    check_sentence(said.json["error"]["message"])


def identity_of(fleet: Fleet, name: str) -> Identity:
    identity = load_identity(fleet.root / "agents" / name)
    assert identity is not None
    return identity


def test_an_agent_that_meets_another_fleets_server_ends_and_says_so(standing: Fleet, foreign: Fleet) -> None:
    state = standing.root / "agents" / "spent"
    file = state / "identity" / "identity.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"agent_address": foreign.agent_address}))
    try:
        said = standing.run("agent", "--state", str(state), "--json", code=1)
    finally:
        file.write_text(before)
    (line,) = said.err.strip().splitlines()
    message = json.loads(line)["message"]
    check_sentence(message)
    assert "is not the one this device enrolled with" in message
    assert f"remove {file.parent} and enrol again with a token of that server" in message
    check_log(foreign)


def test_a_line_of_another_server_moves_no_device_but_says_how(standing: Fleet, foreign: Fleet, tmp_path: Path) -> None:
    token = foreign.run("devices", "enroll", "--name", "moved", "--json").json["token"]
    state = tmp_path / "state"
    shutil.copytree(standing.root / "agents" / "spent", state)
    line = ("agent", "--state", str(state), "enroll", "--server", foreign.address, "--token", token)
    says = f"works for another server, at {standing.address} with another CA, .* goes on with that: .* remove {state}/identity"
    refused(foreign, *line, error="CONFLICT", says=says)
    identity = load_identity(state)
    assert identity is not None and identity.server == standing.address
    shutil.rmtree(state / "identity")
    foreign.run(*line)
    identity = load_identity(state)
    assert identity is not None and identity.server == foreign.address
    check_log(foreign)


def test_a_device_whose_version_is_below_the_minimum(standing: Fleet) -> None:
    identity = identity_of(standing, "spent")
    credentials = agent_credentials(identity.ca_pem, identity.key_pem, identity.certificate_pem)
    with grpc.secure_channel(identity.agent_address, credentials, options=CLIENT_OPTIONS) as channel:
        stub = work_pb2_grpc.AgentWorkStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Hello(work_pb2.HelloRequest(agent_version="0.0.1", protocol_version=0), timeout=20)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        error = from_rpc_error(caught.value)
        assert isinstance(error, VersionTooOld)
        check_sentence(error.message)
        assert "run `pip install --upgrade fleetfit` on the device and start the agent again" in error.message
        with pytest.raises(grpc.RpcError) as caught:
            stub.Hello(work_pb2.HelloRequest(protocol_version=9, oldest_protocol_version=9), timeout=20)
        assert "pip install --upgrade 'fleetfit[server]'" in from_rpc_error(caught.value).message
    assert enrol_raw(standing, "x" * 40, protocol_version=0) is grpc.StatusCode.FAILED_PRECONDITION
