"""Trust on a digest: fetch a server's CA unverified, and accept it only if its key is the expected one.

A token is `secret.sha256(CA public key)`. The secret is sent only over a connection that was verified against a CA with
that digest, so whoever sits in between learns nothing.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from fleetfit.core.errors import InvalidInput, PermissionDenied, Unavailable

_TOKEN = re.compile(r"([A-Za-z0-9_-]{16,128})\.([0-9a-f]{64})")


@dataclass(frozen=True)
class Token:
    """A parsed token. `ca_digest` is the SHA-256, in hexadecimal, of the CA's SubjectPublicKeyInfo (DER)."""

    secret: str
    ca_digest: str

    def __repr__(self) -> str:
        return f"Token(secret=..., ca_digest={self.ca_digest[:10]}...)"


def parse_token(text: str) -> Token:
    """Take a token apart. Raises InvalidInput where it is not whole."""
    match = _TOKEN.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            "the token is not whole: it reads SECRET.DIGEST with 64 hexadecimal digits after the dot; "
            "copy it again from the line it was printed in",
            field="token",
        )
    return Token(match[1], match[2])


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`. Raises InvalidInput."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(
            f"'{address}' is not an address; write HOST:PORT, for example 192.168.1.10:7600", field="server"
        )
    return host, int(port)


def public_key_digest(certificate_der: bytes) -> str:
    """SHA-256 of a certificate's SubjectPublicKeyInfo, in hexadecimal."""
    # Imported here: 10 MiB that a resident agent must not carry.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = x509.load_der_x509_certificate(certificate_der).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    # Public from Python 3.13 on; before that only the inner object has it, and gives certificate objects.
    inner: Any = connection if hasattr(connection, "get_unverified_chain") else connection._sslobj  # type: ignore[attr-defined]
    chain = inner.get_unverified_chain() or []
    return [item if isinstance(item, bytes) else ssl.PEM_cert_to_DER_cert(item.public_bytes()) for item in chain]


def fetch_ca(address: str, ca_digest: str, *, timeout_s: float = 10.0) -> bytes:
    """The PEM of the server's CA, if its public key has the expected digest.

    Raises Unavailable where nothing answers, PermissionDenied where the server's CA is another one.
    """
    host, port = split_address(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Unverified on purpose: nothing is sent here, and the chain counts only if its digest is the token's.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as raw, context.wrap_socket(raw) as connection:
            chain = _chain(connection)
    except ssl.SSLError as error:
        raise Unavailable(
            f"{address} does not speak TLS; give the address that `fleetfit server` printed", private=str(error)
        ) from error
    except OSError as error:
        raise Unavailable(
            f"{address} cannot be reached ({error.strerror or error}); check the address and that the server runs"
        ) from error
    for der in chain:
        if public_key_digest(der) == ca_digest:
            return ssl.DER_cert_to_PEM_cert(der).encode()
    raise PermissionDenied(
        f"the server at {address} is not the one that made this token (its CA has another key); "
        "nothing was sent to it: check the address, or make a new token on that server"
    )
