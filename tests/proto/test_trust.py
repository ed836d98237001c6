from __future__ import annotations

import datetime
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import FleetfitError, InvalidInput, PermissionDenied, Unavailable
from fleetfit.proto.trust import fetch_ca, parse_token, split_address


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(signer, hashes.SHA256())
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str, bytes]]:
    """A TLS server that sends leaf and CA: its address, its CA's digest, its CA's PEM."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("ca", ca_key, "ca", ca_key)
    leaf = _certificate("fleetfit-server", key, "ca", ca_key)
    (tmp_path / "chain.pem").write_bytes(leaf.public_bytes(Encoding.PEM) + ca.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                context.wrap_socket(raw, server_side=True).close()
            except OSError:
                raw.close()

    thread = threading.Thread(target=serve)
    thread.start()
    spki = ca.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    yield f"127.0.0.1:{listener.getsockname()[1]}", hashlib.sha256(spki).hexdigest(), ca.public_bytes(Encoding.PEM)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_the_right_ca_is_fetched(server: tuple[str, str, bytes]) -> None:
    address, digest, pem = server
    fetched = fetch_ca(address, digest)
    assert x509.load_pem_x509_certificate(fetched) == x509.load_pem_x509_certificate(pem)


def test_another_ca_is_refused_before_anything_is_sent(server: tuple[str, str, bytes]) -> None:
    with pytest.raises(PermissionDenied, match="nothing was sent"):
        fetch_ca(server[0], "0" * 64)


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match="check the address"):
        fetch_ca("127.0.0.1:1", "0" * 64, timeout_s=5)


def test_a_server_without_tls() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(Unavailable, match="does not speak TLS"):
        fetch_ca(f"127.0.0.1:{listener.getsockname()[1]}", "0" * 64, timeout_s=5)
    thread.join()
    listener.close()


@given(st.text(max_size=120))
def test_any_text_is_a_token_or_an_error_of_ours(text: str) -> None:
    try:
        token = parse_token(text)
    except InvalidInput as error:
        assert error.field == "token"
    else:
        assert f"{token.secret}.{token.ca_digest}" == text.strip()


def test_a_token_does_not_print_its_secret() -> None:
    secret = "s" * 32
    assert secret not in repr(parse_token(f"{secret}.{'a' * 64}"))


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_an_error_of_ours(text: str) -> None:
    try:
        host, port = split_address(text)
    except FleetfitError:
        return
    assert host
    assert 0 <= port <= 65535
