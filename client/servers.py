"""Which server to talk to, and with what credential.

In this order: the address that was given, `FLEETFIT_SERVER`, the only server of this user that runs on this machine. Its
credential is a token (given, or `FLEETFIT_TOKEN`), or the file that a server leaves in its user's configuration folder.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import platformdirs

from fleetfit.core.errors import InvalidInput, NotFound, PermissionDenied, Unauthenticated
from fleetfit.proto.trust import fetch_ca, parse_token, split_address

_ANY_HOST: Final = ("0.0.0.0", "::", "*")  # noqa: S104 - compared with, never bound to
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_ANSWER_S: Final = 0.5


@dataclass(frozen=True)
class Credential:
    """Where a server is, the CA (PEM) that certifies it, and the secret that names the caller.

    `listens_on` is what the server listens on, as it wrote itself; empty where that is not known.
    """

    address: str
    ca_pem: bytes = field(repr=False)
    secret: str = field(repr=False)
    listens_on: str = ""

    @property
    def listens_everywhere(self) -> bool:
        """Whether the server can be reached by any address of this machine."""
        return bool(self.listens_on) and split_address(self.listens_on)[0] in _ANY_HOST


def config_folder() -> Path:
    """The user's configuration folder: `FLEETFIT_CONFIG_DIR`, else the platform's."""
    return Path(os.environ.get("FLEETFIT_CONFIG_DIR") or platformdirs.user_config_dir("fleetfit"))


def find_server(server: str = "", token: str = "") -> Credential:
    """The server to use and the credential for it.

    Raises NotFound where there is none, Unauthenticated where an address has no credential, InvalidInput for an address or a
    token that is not one, and what fetching a server's CA raises.
    """
    address = server or os.environ.get("FLEETFIT_SERVER", "")
    token = token or os.environ.get("FLEETFIT_TOKEN", "")
    if token:
        if not address:
            raise InvalidInput(
                "a token is given but no server; set FLEETFIT_SERVER or --server to the address that it belongs to",
                field="server",
            )
        split_address(address)
        parsed = parse_token(token)
        return Credential(address, fetch_ca(address, parsed.ca_digest), parsed.secret)
    known = local_credentials()
    if address:
        return _for_address(address, known)
    if not known:
        raise NotFound(
            "no server was found: start one on this machine with `fleetfit server`, or set FLEETFIT_SERVER and "
            "FLEETFIT_TOKEN to what a server elsewhere printed when it started",
            field="server",
        )
    running = known if len(known) == 1 else [one for one in known if _answers(one.address)]
    if len(running) == 1:
        return running[0]
    if not running:
        raise NotFound(
            f"none of the servers known to this user runs ({_listed(known)}); start one with `fleetfit server`",
            field="server",
        )
    raise InvalidInput(f"several servers run here ({_listed(running)}); name one with --server", field="server")


def local_credentials() -> list[Credential]:
    """The credentials that servers of this user have left on this machine, newest first."""
    folder = config_folder() / "servers"
    try:
        files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return [read_credential(file) for file in files]


def read_credential(file: Path) -> Credential:
    """One credential file. Raises PermissionDenied where others could have written it, InvalidInput where it is damaged."""
    try:
        facts = file.stat()
        # What another user can write decides where this user's secret goes.
        if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            raise PermissionDenied(
                f"{file} can be changed by other users; delete it and restart the server, which writes it anew"
            )
        content = json.loads(file.read_text())
        listens_on, ca_pem = str(content["address"]), str(content["ca_pem"]).encode()
        host, port = split_address(listens_on)
        # An address that stands for all of them can be listened on but not dialled everywhere.
        address = f"127.0.0.1:{port}" if host in _ANY_HOST else listens_on
        return Credential(address, ca_pem, str(content["token"]).split(".")[0], listens_on)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{file} is damaged; delete it and restart the server, which writes it anew", private=str(error)
        ) from error


def _for_address(address: str, known: Sequence[Credential]) -> Credential:
    host, port = split_address(address)
    for one in known:
        if _same_server(host, port, one.listens_on):
            return Credential(address, one.ca_pem, one.secret, one.listens_on)
    raise Unauthenticated(
        f"there is no credential for {address} on this machine; set FLEETFIT_TOKEN to the token that this server printed "
        "when it first started",
        field="token",
    )


def _same_server(host: str, port: int, other: str) -> bool:
    other_host, other_port = split_address(other)
    if port != other_port:
        return False
    # A server that listens everywhere may be given by any of its names. A wrong guess is harmless: the secret is sent only
    # to a server that this credential's CA certifies.
    return host == other_host or other_host in _ANY_HOST or (host in LOOPBACK and other_host in LOOPBACK)


def _answers(address: str) -> bool:
    try:
        with socket.create_connection(split_address(address), timeout=_ANSWER_S):
            return True
    except OSError:
        return False


def _listed(credentials: Sequence[Credential]) -> str:
    shown = [one.address for one in credentials[:4]]
    return ", ".join(shown) + (", ..." if len(credentials) > len(shown) else "")
