"""The fleet's own certificate authority: it certifies this server and the devices, and nobody else.

    STATE/pki/ca.pem, ca.key.pem    made once; losing the key means enrolling every device again

The server's own key and certificate are made at each start and live in memory: whoever holds the CA can make another.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleetfit.core.digests import sha256_bytes
from fleetfit.core.errors import Conflict, InvalidInput
from fleetfit.proto.channels import SERVER_NAME
from fleetfit.server.security.files import private_folder, write_private

DEVICE_URI: Final = "fleetfit:device:"
# Long, because a CA that runs out takes the whole fleet with it, and there is nobody above it who could be asked.
_CA_LIFE: Final = datetime.timedelta(days=20 * 365)
# Until certificates are renewed by themselves, this is for how long a device works without being enrolled again.
DEVICE_LIFE: Final = datetime.timedelta(days=5 * 365)
_SERVER_LIFE: Final = datetime.timedelta(days=5 * 365)
# Devices without a battery-backed clock start in the past.
_CLOCK_SLACK: Final = datetime.timedelta(days=1)
_MOST_REQUEST_BYTES: Final = 16_384


@dataclass(frozen=True)
class ServerIdentity:
    """What a TLS listener shows: its private key, and its certificate followed by the CA's."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes


class Authority:
    """A certificate authority in `folder`, made there the first time. Raises Conflict where its files are damaged."""

    def __init__(self, folder: Path) -> None:
        private_folder(folder)
        key_file, certificate_file = folder / "ca.key.pem", folder / "ca.pem"
        # The certificate is written last: with the key alone nothing was certified yet.
        if not certificate_file.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(key_file, _key_pem(key))
            write_private(certificate_file, _own_certificate(key).public_bytes(Encoding.PEM))
        self._key, self._certificate = _load(key_file, certificate_file)
        key_file.chmod(0o600)

    @property
    def pem(self) -> bytes:
        """The CA's certificate."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the CA's SubjectPublicKeyInfo (DER): the public half of every token."""
        return sha256_bytes(self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def clock_fault(self) -> str:
        """Why nobody's certificate holds by this machine's clock; empty where the clock may be right."""
        begins, ends = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        if begins <= _now() <= ends:
            return ""
        return (
            f"this server's clock shows {_now():%Y-%m-%d %H:%M} UTC, and the fleet's CA holds from {begins:%Y-%m-%d} to "
            f"{ends:%Y-%m-%d}, so no device can connect; set the clock"
        )

    def certify_server(self, hosts: Sequence[str] = ()) -> ServerIdentity:
        """A new key and certificate for this server, good for `fleetfit-server`, localhost and `hosts`."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(SERVER_NAME), x509.DNSName("localhost")]
        for host in dict.fromkeys(["127.0.0.1", "::1", *hosts]):
            name = _general_name(host)
            if name is not None and name not in names:
                names.append(name)
        builder = (
            self._leaf(SERVER_NAME, key.public_key(), _SERVER_LIFE)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        leaf = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return ServerIdentity(_key_pem(key), leaf + self.pem)

    def certify_device(self, request_pem: str, device_id: str) -> str:
        """Sign a device's request; the certificate, PEM. Only the key is taken from the request, never a name.

        Raises InvalidInput where the request is none, is not signed by its own key, or has a key of an unsuitable kind.
        """
        public_key = check_request(request_pem)
        builder = (
            self._leaf(device_id, public_key, DEVICE_LIFE)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{DEVICE_URI}{device_id}")]),
                critical=False,
            )
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def _leaf(
        self, name: str, public_key: ec.EllipticCurvePublicKey, life: datetime.timedelta
    ) -> x509.CertificateBuilder:
        # From the CA's own beginning on: a clock that is set back, here or on a device that has no battery for it, must not
        # part a fleet. No key is older than its certificate says; nobody relies on that.
        begins = self._certificate.not_valid_before_utc
        ends = min(max(_now(), begins) + life, self._certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def check_request(request_pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a signing request. Raises InvalidInput where it cannot be certified."""
    field = "signing_request_pem"
    advice = "update the agent and enrol again"
    if len(request_pem) > _MOST_REQUEST_BYTES:
        raise InvalidInput(f"the signing request is larger than {_MOST_REQUEST_BYTES} bytes; {advice}", field=field)
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        sound = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        message = f"the signing request cannot be read as PKCS #10; {advice}"
        raise InvalidInput(message, field=field, private=str(error)) from error
    if not sound:
        raise InvalidInput(f"the signing request is not signed by its own key; {advice}", field=field)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        raise InvalidInput(
            f"the signing request's key is not an elliptic-curve key on P-256 or P-384; {advice}", field=field
        )
    return key


def _load(key_file: Path, certificate_file: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    damaged = (
        f"the fleet's CA in {certificate_file.parent} is damaged ({{}}); restore that folder from a backup, or remove it and "
        "enrol every device again"
    )
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    except FileNotFoundError as error:
        raise Conflict(damaged.format("its key is missing")) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Conflict(damaged.format("it cannot be read"), private=str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise Conflict(damaged.format("key and certificate do not belong together"))
    return key, certificate


def _own_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # A name of its own for each fleet, so that a chain is never built over another fleet's CA.
    name = _name(f"fleetfit {x509.random_serial_number():x}"[:40])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _CLOCK_SLACK)
        .not_valid_after(_now() + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(host: str) -> x509.GeneralName | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return x509.DNSName(host)
        except ValueError:
            return None
    return None if address.is_unspecified else x509.IPAddress(address)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
