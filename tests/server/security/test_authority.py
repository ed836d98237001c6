from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import Conflict, InvalidInput
from fleetfit.proto.trust import public_key_digest
from fleetfit.server.security import authority as authority_module
from fleetfit.server.security.authority import Authority, check_request


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, wish: str = "device", ca: bool = False) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wish)])
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("fleetfit:device:somebody-else")])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def store(authority: Authority) -> Store:
    return Store([x509.load_pem_x509_certificate(authority.pem)])


def test_it_is_made_once_and_readable_by_its_user_only(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "pki"), Authority(tmp_path / "pki")
    assert (first.pem, first.digest) == (second.pem, second.digest)
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    for file in (tmp_path / "pki").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert isinstance(load_pem_private_key((tmp_path / "pki" / "ca.key.pem").read_bytes(), None), type(p256()))


def test_its_digest_is_what_a_client_computes(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    der = x509.load_pem_x509_certificate(authority.pem).public_bytes(Encoding.DER)
    assert authority.digest == public_key_digest(der)


def test_the_servers_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    identity = authority.certify_server(["192.168.1.10", "pi.lan", "0.0.0.0", "::", "not a host!"])
    leaf, ca = x509.load_pem_x509_certificates(identity.chain_pem)
    assert ca.public_bytes(Encoding.PEM) == authority.pem
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName)[:2] == ["fleetfit-server", "localhost"]
    assert "pi.lan" in names.get_values_for_type(x509.DNSName)
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1", "192.168.1.10"}
    verifier = PolicyBuilder().store(store(authority)).build_server_verifier(x509.DNSName("fleetfit-server"))
    assert verifier.verify(leaf, [])
    assert b"PRIVATE" not in repr(identity).encode()
    assert not any(identity.key_pem in file.read_bytes() for file in tmp_path.iterdir())


def test_a_devices_certificate_says_what_the_server_says(tmp_path: Path) -> None:
    authority, key = Authority(tmp_path), p256()
    pem = authority.certify_device(csr(key, wish="somebody-else", ca=True), "01abc").encode()
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["fleetfit:device:01abc"]
    assert certificate.subject.rfc4514_string() == "CN=01abc"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usages = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usages == [ExtendedKeyUsageOID.CLIENT_AUTH]
    verified = PolicyBuilder().store(store(authority)).build_client_verifier().verify(certificate, [])
    assert verified.subjects == [x509.UniformResourceIdentifier("fleetfit:device:01abc")]
    now = datetime.datetime.now(datetime.timezone.utc)
    assert certificate.not_valid_before_utc < now - datetime.timedelta(hours=1), "a device's clock may be behind"
    assert certificate.not_valid_after_utc > now + datetime.timedelta(days=365)


@pytest.mark.parametrize("off_days", [-40, 3, 400])
def test_certificates_made_by_a_clock_that_was_off_hold_when_it_is_right_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_days: int
) -> None:
    made = datetime.datetime.now(datetime.timezone.utc)
    authority, key = Authority(tmp_path), p256()
    monkeypatch.setattr(authority_module, "_now", lambda: made + datetime.timedelta(days=off_days))
    device = x509.load_pem_x509_certificate(authority.certify_device(csr(key), "x").encode())
    server, _ = x509.load_pem_x509_certificates(authority.certify_server().chain_pem)
    trusted = PolicyBuilder().store(store(authority)).time(made)
    trusted.build_client_verifier().verify(device, [])
    trusted.build_server_verifier(x509.DNSName("fleetfit-server")).verify(server, [])
    assert min(device.not_valid_after_utc, server.not_valid_after_utc) > made + datetime.timedelta(days=4 * 365)


def test_a_clock_by_which_the_ca_does_not_hold_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    assert authority.clock_fault() == ""
    moment = datetime.datetime(1970, 1, 1, 0, 3, tzinfo=datetime.timezone.utc)
    monkeypatch.setattr(authority_module, "_now", lambda: moment)
    assert authority.clock_fault().startswith(
        "this server's clock shows 1970-01-01 00:03 UTC, and the fleet's CA holds from"
    )


def test_one_fleets_certificate_is_worth_nothing_in_another(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    certificate = x509.load_pem_x509_certificate(other.certify_device(csr(p256()), "x").encode())
    with pytest.raises(VerificationError):
        PolicyBuilder().store(store(ours)).build_client_verifier().verify(certificate, [])


def test_a_device_cannot_certify_others(tmp_path: Path) -> None:
    authority, key = Authority(tmp_path), p256()
    device = x509.load_pem_x509_certificate(authority.certify_device(csr(key), "x").encode())
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(device.subject)
        .public_key(p256().public_key())
        .serial_number(1)
        .not_valid_before(device.not_valid_before_utc)
        .not_valid_after(device.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("fleetfit:device:y")]), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(VerificationError):
        PolicyBuilder().store(store(authority)).build_client_verifier().verify(forged, [device])


def test_requests_with_other_keys_are_refused() -> None:
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP224R1())):
        with pytest.raises(InvalidInput, match="P-256"):
            check_request(csr(key))


@given(st.text(max_size=300))
def test_any_text_is_a_request_or_an_error_of_ours(text: str) -> None:
    with pytest.raises(InvalidInput):
        check_request(text)
    with pytest.raises(InvalidInput):
        check_request(f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")


@pytest.mark.parametrize("damage", ["no key", "another key", "cut key", "cut certificate"])
def test_a_damaged_authority_is_not_replaced_in_silence(tmp_path: Path, damage: str) -> None:
    Authority(tmp_path / "pki")
    key, certificate = tmp_path / "pki" / "ca.key.pem", tmp_path / "pki" / "ca.pem"
    before = certificate.read_bytes()
    if damage == "no key":
        key.unlink()
    elif damage == "another key":
        Authority(tmp_path / "other")
        key.write_bytes((tmp_path / "other" / "ca.key.pem").read_bytes())
    elif damage == "cut key":
        key.write_bytes(key.read_bytes()[:60])
    else:
        before = before[:100]
        certificate.write_bytes(before)
    with pytest.raises(Conflict, match="restore that folder from a backup"):
        Authority(tmp_path / "pki")
    assert certificate.read_bytes() == before


def test_a_start_that_died_between_key_and_certificate_begins_anew(tmp_path: Path) -> None:
    Authority(tmp_path)
    (tmp_path / "ca.pem").unlink()
    authority = Authority(tmp_path)
    assert authority.certify_device(csr(p256()), "x")
