"""The credential that a server leaves for its own user, so that the command line finds it with nothing to set up."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import platformdirs

from fleetfit.proto.trust import split_address
from fleetfit.server.security.files import private_folder, write_private


def credential_file(address: str) -> Path:
    """Where the credential for a server at `address` lies: `FLEETFIT_CONFIG_DIR`, else the user's configuration folder."""
    host, port = split_address(address)
    folder = Path(os.environ.get("FLEETFIT_CONFIG_DIR") or platformdirs.user_config_dir("fleetfit"))
    return folder / "servers" / f"{host}_{port}.json"


def leave_credential(address: str, ca_pem: bytes, token: str) -> Path:
    """Write the credential, readable by this user only. Raises OSError where the folder cannot be written."""
    file = credential_file(address)
    private_folder(file.parent)
    content = {"address": address, "ca_pem": ca_pem.decode(), "token": token}
    write_private(file, (json.dumps(content, indent=2) + "\n").encode())
    return file


def remove_credential(file: Path, token: str) -> None:
    """Remove a credential that was left, unless another server has written its own there since."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(file.read_text())["token"] == token:
            file.unlink()
