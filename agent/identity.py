"""What an agent knows about itself: a folder with its key, its certificate, its fleet's CA and where to connect.

    STATE/identity/identity.json   device id, name, addresses
    STATE/identity/key.pem         the private key, made here, never sent
    STATE/identity/certificate.pem
    STATE/identity/ca.pem

Standard library only: the resident agent reads this.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from fleetfit.core.errors import Conflict, FleetfitError, NotFound

FOLDER = "identity"


@dataclass(frozen=True)
class Identity:
    """A device's identity. `server` is where it enrolled, `agent_address` where it works (mutual TLS)."""

    device_id: str
    name: str
    server: str
    agent_address: str
    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes

    def __repr__(self) -> str:
        return f"Identity(device_id={self.device_id!r}, name={self.name!r}, agent_address={self.agent_address!r})"


def load_identity(state: Path) -> Identity | None:
    """The identity in `state`, or None where this device is not enrolled. Raises Conflict where it is damaged."""
    folder = state / FOLDER
    if not folder.exists():
        return None
    try:
        facts = json.loads((folder / "identity.json").read_text())
        return Identity(
            device_id=str(facts["device_id"]),
            name=str(facts["name"]),
            server=str(facts["server"]),
            agent_address=str(facts["agent_address"]),
            key_pem=(folder / "key.pem").read_bytes(),
            certificate_pem=(folder / "certificate.pem").read_bytes(),
            ca_pem=(folder / "ca.pem").read_bytes(),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(state, error) from error


def damaged(state: Path, error: Exception) -> Conflict:
    """What is said of an identity that cannot be read."""
    return Conflict(
        f"the identity in {state / FOLDER} is damaged ({error}); remove that folder and enrol again with a new token"
    )


def require_identity(state: Path) -> Identity:
    """The identity in `state`. Raises NotFound, saying how to enrol, where there is none."""
    identity = load_identity(state)
    if identity is None:
        raise NotFound(
            f"this device is not enrolled (nothing in {state}); run `fleetfit devices enroll` where the server is, "
            "and paste the line that it prints here"
        )
    return identity


def save_identity(state: Path, identity: Identity) -> None:
    """Write all of an identity or nothing of it. Raises FleetfitError where the folder cannot be written."""
    folder = state / FOLDER
    fresh = state / f"{FOLDER}.new"
    facts = {name: value for name, value in asdict(identity).items() if not name.endswith("_pem")}
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True, mode=0o700)
        for name, content in (
            ("identity.json", (json.dumps(facts, indent=2) + "\n").encode()),
            ("key.pem", identity.key_pem),
            ("certificate.pem", identity.certificate_pem),
            ("ca.pem", identity.ca_pem),
        ):
            descriptor = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        fresh.rename(folder)
    except OSError as error:
        raise FleetfitError(
            f"the identity cannot be written to {folder} ({error.strerror or error}); "
            "make the folder writable or name another with --state"
        ) from error
