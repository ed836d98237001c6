from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleetfit.core.errors import InvalidInput, PermissionDenied, Unauthenticated, VersionTooOld
from fleetfit.proto.trust import fetch_ca, parse_token
from fleetfit.proto.v1 import devices_pb2, devices_pb2_grpc
from fleetfit.server.security import enrolment as tokens_module
from fleetfit.server.storage.tables import EnrolmentTokenRow

from .site import Site, refused, signing_request, visit


def test_a_token_leads_to_this_server_and_makes_one_device(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        token = await site.new_token(name="pi", labels=["lab", "lab"])
        parsed = parse_token(token)
        # What `fleetfit agent` does first: the chain that TLS sends holds the CA whose digest the token names.
        assert await asyncio.to_thread(fetch_ca, site.people.address, parsed.ca_digest) == site.authority.pem
        member = await site.enrol(token)
        assert member.name == "pi"
        stub = devices_pb2_grpc.DevicesStub(site.people_channel())
        device = (await stub.GetDevice(devices_pb2.GetDeviceRequest(device="pi"), metadata=site.metadata)).device
        assert (device.device_id, list(device.labels)) == (member.device_id, ["lab"])
        assert device.state == devices_pb2.DEVICE_STATE_ENROLLED

    visit(tmp_path / "site", scenario)


def test_a_server_with_another_ca_is_seen_before_the_secret_is_sent(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        token = await site.new_token()
        other = token[:-1] + ("0" if token[-1] != "0" else "1")
        with pytest.raises(PermissionDenied, match="nothing was sent"):
            await asyncio.to_thread(fetch_ca, site.people.address, parse_token(other).ca_digest)

    visit(tmp_path / "site", scenario)


def test_every_wrong_token_has_its_own_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(site: Site) -> dict[str, str]:
        found = {}
        used = await site.new_token()
        await site.enrol(used)
        found["used"] = await refused(site.enrol(used))
        fresh = await site.new_token()
        changed = ("A" if fresh[5] != "A" else "B").join((fresh[:5], fresh[6:]))
        found["tampered"] = await refused(site.enrol(changed))
        found["cut"] = await refused(site.enrol(fresh[:30]))
        found["empty"] = await refused(site.enrol(" ", secret=""))
        found["wrong"] = await refused(site.enrol(tokens_module.new_secret()))
        monkeypatch.setattr(tokens_module, "now_ms", lambda: 0)
        late = await site.new_token(valid_ms=1)
        monkeypatch.undo()
        found["expired"] = await refused(site.enrol(late))
        assert all(isinstance(error, Unauthenticated) for error in found.values()), found
        await site.enrol(fresh)
        return {name: error.message for name, error in found.items()}

    said = visit(tmp_path / "site", scenario)
    assert said["tampered"] == said["cut"] == said["empty"]
    assert len({said[name] for name in ("used", "tampered", "wrong", "expired")}) == 4
    assert "used before" in said["used"] and "expired" in said["expired"]
    assert "changed or cut off" in said["tampered"] and "did not make" in said["wrong"]


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    async def scenario(site: Site) -> list[object]:
        token = await site.new_token()
        return await asyncio.gather(*(site.enrol(token) for _ in range(12)), return_exceptions=True)

    results = visit(tmp_path / "site", scenario)
    assert sum(not isinstance(result, Exception) for result in results) == 1


def test_a_request_that_cannot_be_granted_leaves_the_token_usable(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        token = await site.new_token()
        _, pem = signing_request()
        _, wrong_curve = signing_request(ec.generate_private_key(ec.SECP521R1()))
        # Well-formed, but the last byte of its signature is another.
        der = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER))
        der[-1] ^= 1
        damaged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
        for bad in ("", "nonsense", damaged, wrong_curve, pem * 50):
            error = await refused(site.enrol(token, signing_request_pem=bad))
            assert isinstance(error, InvalidInput), bad
            assert error.field == "signing_request_pem"
        assert isinstance(await refused(site.enrol(token, name="all")), InvalidInput)
        assert isinstance(await refused(site.enrol(token, protocol_version=0)), VersionTooOld)
        await site.enrol(token)

    visit(tmp_path / "site", scenario)


def test_an_agent_that_is_too_old_is_told_how_to_upgrade(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        error = await refused(site.enrol(protocol_version=0, agent_version="0.0.1"))
        assert isinstance(error, VersionTooOld)
        assert "pip install --upgrade fleetfit" in error.message and "0.0.1" in error.message

    visit(tmp_path / "site", scenario)


def test_a_failure_of_the_servers_does_not_use_the_token_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(site: Site) -> None:
        token = await site.new_token()
        with monkeypatch.context() as patch:
            patch.setattr(site.authority, "certify_device", lambda pem, device: 1 / 0)
            error = await refused(site.enrol(token))
        assert error.code == "INTERNAL" and "division" not in error.message
        await site.enrol(token)

    visit(tmp_path / "site", scenario)


def test_only_digests_of_secrets_are_kept(tmp_path: Path) -> None:
    async def scenario(site: Site) -> str:
        token = await site.new_token()
        rows = await site.house.database.read(lambda session: session.query(EnrolmentTokenRow).count())
        assert rows == 1
        return token

    token = visit(tmp_path / "site", scenario)
    secret = token.split(".")[0].encode()
    for file in (tmp_path / "site").rglob("*"):
        assert not file.is_file() or secret not in file.read_bytes(), file


@pytest.mark.parametrize("wanted", [{"valid_ms": -1}, {"valid_ms": 10**12}, {"name": "a b"}, {"labels": ["all"]}])
def test_wishes_that_cannot_be_met(tmp_path: Path, wanted: dict[str, object]) -> None:
    async def scenario(site: Site) -> None:
        assert isinstance(await refused(site.new_token(**wanted)), InvalidInput)

    visit(tmp_path / "site", scenario)
