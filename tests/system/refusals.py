"""How refusals are looked at: one sentence, an error code, a gRPC status, no traceback, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fleetfit
from fleetfit.client.client import Client
from fleetfit.core.errors import FleetfitError
from fleetfit.proto.v1 import models_pb2

if TYPE_CHECKING:
    from .conftest import Fleet


def check_sentence(message: str) -> None:
    """One sentence for people."""
    assert message and "\n" not in message
    for word in ("Traceback", 'File "', "Error(", "[Errno"):
        assert word not in message, message
    assert not re.search(r"[.!?] [A-Z]", message.rstrip(".")), f"more than one sentence: {message}"


def refused(
    fleet: Fleet, *arguments: str, error: str, says: str, exit_code: int = 1, cwd: Path | None = None
) -> dict[str, Any]:
    """Run a command that must be refused, with `--json`; its error object."""
    said = fleet.run(*arguments, "--json", code=exit_code, cwd=cwd)
    (line,) = said.out.strip().splitlines()
    found: dict[str, Any] = json.loads(line)["error"]
    assert found["code"] == error, found
    check_sentence(found["message"])
    assert re.search(says, found["message"]), found["message"]
    # The last thing on standard error is the same sentence, for people.
    assert said.err.strip().splitlines()[-1].startswith(f"fleetfit: {found['message']}")
    return found


@contextlib.contextmanager
def refusing(status: str, says: str | None = None) -> Iterator[None]:
    """The block must end with an error that travelled under this gRPC status."""
    with pytest.raises(FleetfitError, match=says) as caught:
        yield
    assert caught.value.status == status
    check_sentence(caught.value.message)


def token_of(fleet: Fleet) -> str:
    """The token for people elsewhere, which a server tells when it first starts."""
    return str(json.loads(fleet.log("server").splitlines()[0])["token"])


@contextlib.contextmanager
def client_of(fleet: Fleet) -> Iterator[Client]:
    """A client in this process, as a person on another machine has it."""
    with fleetfit.connect(fleet.address, token_of(fleet)) as client:
        yield client


def books(client: Client) -> dict[str, set[str]]:
    """What is registered and may be used; what was refused must say why, and nothing may be in between."""
    models, datasets = client.models(), client.datasets()
    for one in (*models, *datasets):
        if one.state != models_pb2.INTAKE_STATE_ACCEPTED:
            assert one.state == models_pb2.INTAKE_STATE_REFUSED
            check_sentence(one.refusal)
    accepted = models_pb2.INTAKE_STATE_ACCEPTED
    return {
        "models": {f"{one.name}:{one.version}" for one in models if one.state == accepted},
        "datasets": {f"{one.name}:{one.version}" for one in datasets if one.state == accepted},
        "jobs": {job.job_id for job in client.jobs()},
        "devices": {device.name for device in client.devices()},
    }


@contextlib.contextmanager
def nothing_left(fleet: Fleet) -> Iterator[Client]:
    """After the block the server still serves, holds what it held before, and has logged no bug."""
    with client_of(fleet) as client:
        before = books(client)
        yield client
        assert books(client) == before
    check_log(fleet)


def check_log(fleet: Fleet, name: str = "server") -> None:
    """No traceback and no bug in a process's log."""
    log = fleet.log(name)
    assert "Traceback" not in log and "bug" not in log, log[-4000:]
