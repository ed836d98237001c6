"""`fleetfit server` as a process: how it starts, what it refuses, how it stops, and what it never imports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from fleetfit.core.errors import Conflict, ExhaustedResource, InvalidInput
from fleetfit.proto.channels import CLIENT_OPTIONS, bearer, people_credentials
from fleetfit.proto.trust import fetch_ca, parse_token
from fleetfit.proto.v1 import devices_pb2, devices_pb2_grpc, jobs_pb2, jobs_pb2_grpc
from fleetfit.server.running import Options, check_addresses, install_address, is_loopback, told_address
from fleetfit.server.state import hold_state

pytestmark = pytest.mark.system
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "scipy", "bokeh", "pandas"}
ANY_PORT = ("--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETFIT_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path


@contextlib.contextmanager
def running(root: Path, *arguments: str, start: list[str] | None = None) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A server process and its ready line; killed at the end if the test has not stopped it."""
    command = [*(start or [sys.executable, "-m", "fleetfit"]), "server", "--state", str(root / "state"), "--json"]
    with (root / "log").open("w") as log:
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (root / "log").read_text()
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def refuse(root: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and the sentence of a server that does not start."""
    command = [sys.executable, "-m", "fleetfit", "server", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "" and "Traceback" not in done.stderr
    (sentence,) = done.stderr.strip().splitlines()
    return done.returncode, sentence


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    begin = time.monotonic()
    process.send_signal(number)
    code = process.wait(20)
    assert time.monotonic() - begin < 10
    return code


def credential(root: Path) -> Any:
    (file,) = (root / "config" / "servers").iterdir()
    return json.loads(file.read_text())


def call(address: str, ca_pem: bytes, token: str) -> list[devices_pb2.Device]:
    with grpc.secure_channel(address, people_credentials(ca_pem), options=CLIENT_OPTIONS) as channel:
        stub = devices_pb2_grpc.DevicesStub(channel)
        request = devices_pb2.ListDevicesRequest()
        return list(stub.ListDevices(request, metadata=bearer(token), timeout=20, wait_for_ready=True).devices)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_from_ready_to_stopped(root: Path, number: int) -> None:
    with running(root, *ANY_PORT, "--web", "127.0.0.1:0") as (process, ready):
        said = json.loads((root / "state" / "addresses.json").read_text())
        assert said == {name: ready[name] for name in ("listen", "agent_listen", "web", "install_listen")}
        assert stat.S_IMODE((root / "state").stat().st_mode) == 0o700
        found = credential(root)
        assert found["address"] == ready["listen"]
        assert call(ready["listen"], found["ca_pem"].encode(), found["token"]) == []
        # What was printed for people elsewhere is enough to find the CA and to be let in.
        token = parse_token(ready["token"])
        ca_pem = fetch_ca(ready["listen"], token.ca_digest)
        assert call(ready["listen"], ca_pem, token.secret) == []
        assert httpx.get(f"http://{ready['web']}/").status_code == 200
        # An open stream must not hold the stop up.
        with grpc.secure_channel(ready["listen"], people_credentials(ca_pem), options=CLIENT_OPTIONS) as channel:
            channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
            time.sleep(0.2)
            assert stop(process, number) == 0
    assert not (root / "state" / "addresses.json").exists()
    assert list((root / "config" / "servers").iterdir()) == []


def test_started_again_after_it_was_killed_its_user_notices_nothing(root: Path) -> None:
    with running(root, *ANY_PORT) as (process, ready):
        found = credential(root)
        process.kill()
        process.wait()
    same = ("--listen", ready["listen"], "--agent-listen", ready["agent_listen"])
    with running(root, *same) as (process, again):
        assert "token" not in again, "the token for people elsewhere is told once"
        assert {again[name] for name in ("listen", "agent_listen")} == {ready["listen"], ready["agent_listen"]}
        assert credential(root) == found
        assert call(again["listen"], found["ca_pem"].encode(), found["token"]) == []
        assert stop(process) == 0
    assert credential(root) == found, "at a fixed address the credential stays"


def test_a_new_token_ends_the_older_one(root: Path) -> None:
    with running(root, *ANY_PORT) as (process, first):
        stop(process)
    with running(root, *ANY_PORT, "--new-token") as (process, second):
        tokens = [parse_token(ready["token"]) for ready in (first, second)]
        assert tokens[0].ca_digest == tokens[1].ca_digest
        ca_pem = fetch_ca(second["listen"], tokens[1].ca_digest)
        assert call(second["listen"], ca_pem, tokens[1].secret) == []
        with pytest.raises(grpc.RpcError) as raised:
            call(second["listen"], ca_pem, tokens[0].secret)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_process_never_imports_what_belongs_into_children(root: Path) -> None:
    code = (
        "import atexit, sys; from fleetfit.cli import main\n"
        "atexit.register(lambda: print(*sys.modules, flush=True))\nmain()"
    )
    with running(root, *ANY_PORT, "--web", "127.0.0.1:0", "--dev", start=[sys.executable, "-c", code]) as (
        process,
        ready,
    ):
        found = credential(root)
        call(ready["listen"], found["ca_pem"].encode(), found["token"])
        with grpc.secure_channel(
            ready["listen"], people_credentials(found["ca_pem"].encode()), options=CLIENT_OPTIONS
        ) as c:
            # Planning reads recipes and passes.
            stub = jobs_pb2_grpc.JobsStub(c)
            spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_COMPRESS, model="net", devices=["all"])
            with pytest.raises(grpc.RpcError):
                stub.PlanJob(jobs_pb2.PlanJobRequest(spec=spec), metadata=bearer(found["token"]), timeout=20)
        httpx.get(f"http://{ready['web']}/")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    modules = {name.partition(".")[0] for name in out.split()}
    assert "fleetfit" in modules and "grpc" in modules
    assert not HEAVY & modules


def test_plain_text_and_old_tls_get_nothing(root: Path) -> None:
    with running(root, *ANY_PORT) as (_, ready):
        host, _, port = ready["listen"].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"SETTINGS" not in raw.recv(1000)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            with context.wrap_socket(raw) as connection:
                assert connection.version() in ("TLSv1.2", "TLSv1.3")


def test_two_servers_never_share_a_folder(root: Path) -> None:
    with running(root, *ANY_PORT):
        code, sentence = refuse(root, "--state", str(root / "state"), *ANY_PORT)
    assert code == 1 and "another server already works in" in sentence and "--state" in sentence


def test_a_port_that_is_taken(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        state = ("--state", str(root / "state"))
        for arguments in (
            (*state, "--listen", address, "--agent-listen", "127.0.0.1:0"),
            (*state, "--listen", "127.0.0.1:0", "--agent-listen", address),
            (*state, *ANY_PORT, "--web", address),
        ):
            code, sentence = refuse(root, *arguments)
            assert code == 1 and f"{address} is taken" in sentence
    assert not (root / "state" / "addresses.json").exists()


def test_a_database_of_a_newer_version(root: Path) -> None:
    subprocess.run([sys.executable, "-m", "fleetfit", "server", "--state", str(root / "state"), "--check"], check=True)
    with contextlib.closing(sqlite3.connect(root / "state" / "fleetfit.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    for more in ((), ("--check",)):
        code, sentence = refuse(root, "--state", str(root / "state"), *ANY_PORT, *more)
        assert code == 1 and "newer fleetfit" in sentence


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--listen", "nonsense"), "write HOST:PORT"),
        (("--listen", "127.0.0.1:99999"), "write HOST:PORT"),
        (("--web", "0.0.0.0:7602"), "on this machine only"),
        (("--web", "192.0.2.1:7602"), "on this machine only"),
        (("--method", "careful"), "choose standard or quick"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_wrong_options(root: Path, arguments: tuple[str, ...], says: str) -> None:
    code, sentence = refuse(root, "--state", str(root / "state"), *arguments)
    assert code == 2 and says in sentence


def test_a_folder_that_cannot_be(root: Path) -> None:
    (root / "file").write_text("")
    for state in (root / "file", root / "file" / "below"):
        code, sentence = refuse(root, "--state", str(state), *ANY_PORT)
        assert code == 1 and "--state" in sentence


def test_checking_says_what_was_found_and_starts_nothing(root: Path) -> None:
    command = [sys.executable, "-m", "fleetfit", "server", "--state", str(root / "state"), "--check", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["ok"] is True and len(said["ca"]) == 64
    assert not (root / "config").exists()
    with running(root, *ANY_PORT) as (_, ready):
        assert parse_token(ready["token"]).ca_digest == said["ca"]


no_driver = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver here")


@no_driver
def test_checking_says_where_it_would_train(root: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fleetfit",
        "server",
        "--state",
        str(root / "state"),
        "--check",
        "--compute",
        "auto",
    ]
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["ok"] is True and found["compute"]["device"] is None and "/dev/nvidiactl" in found["compute"]["reason"]


@no_driver
def test_a_server_that_is_to_train_on_cuda_does_not_start_without(root: Path) -> None:
    arguments = ["server", "--state", str(root / "state"), *ANY_PORT, "--compute", "cuda"]
    refused = subprocess.run([sys.executable, "-m", "fleetfit", *arguments], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and refused.stdout == "" and "Traceback" not in refused.stderr
    assert "training cannot compute on CUDA" in refused.stderr and "--compute cpu" in refused.stderr


@no_driver
def test_a_server_that_may_train_on_cuda_starts_without_and_says_why(root: Path) -> None:
    with running(root, *ANY_PORT, "--compute", "auto") as (process, _):
        assert "training computes on the processor: there is no /dev/nvidiactl" in (root / "log").read_text()
        assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
        assert stop(process) == 0


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExhaustedResource, match="make room there"), hold_state(tmp_path / "state"):
        pass
    assert not (tmp_path / "state" / ".probe").exists()


def test_the_folder_is_free_again(tmp_path: Path) -> None:
    for _ in range(2):
        with hold_state(tmp_path), pytest.raises(Conflict), hold_state(tmp_path):
            pass


def test_what_devices_are_told() -> None:
    assert told_address("0.0.0.0:7601") == told_address("[::]:7601") == ":7601"
    assert told_address("10.0.0.1:7601") == "10.0.0.1:7601"
    assert told_address("pi.lan:7601") == "pi.lan:7601"
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com")] == [False] * 4


def test_pages_beyond_this_machine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="127.0.0.1:7602"):
        check_addresses(Options("127.0.0.1:0", "127.0.0.1:0", "0.0.0.0:7602", tmp_path))


@pytest.mark.parametrize(
    ("listen", "install"),
    [("127.0.0.1:7600", "127.0.0.1:7603"), ("0.0.0.0:0", "0.0.0.0:0"), ("[::1]:65535", "[::1]:0")],
)
def test_devices_fetch_their_agent_beside_the_peoples_port(listen: str, install: str) -> None:
    assert install_address(listen) == install


def test_a_taken_port_for_installers_stops_only_who_asked_for_it(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refuse(root, *ANY_PORT, "--state", str(root / "state"), "--install-listen", f"127.0.0.1:{port}")
        assert code == 1 and f"127.0.0.1:{port} is taken" in said
    with running(root, *ANY_PORT, "--install-listen", "none") as (_, ready):
        assert ready["install_listen"] is None
