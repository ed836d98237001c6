"""A server's two listeners over real sockets and real TLS, on an engine whose children are made of paper."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fleetfit.core.errors import FleetfitError
from fleetfit.proto.channels import CLIENT_OPTIONS, agent_credentials, bearer, people_credentials
from fleetfit.proto.status import from_rpc_error
from fleetfit.proto.v1 import devices_pb2, devices_pb2_grpc, enrolment_pb2, enrolment_pb2_grpc
from fleetfit.server.security.authority import Authority
from fleetfit.server.security.enrolment import EnrolmentTokens
from fleetfit.server.security.people import People
from fleetfit.server.services import listeners
from fleetfit.server.services.listeners import Parts, agents_listener, people_listener

from ..engine.harness import House


def signing_request(key: ec.EllipticCurvePrivateKey | None = None) -> tuple[bytes, str]:
    """A new key and a request for it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, request.public_bytes(Encoding.PEM).decode()


@dataclass
class Member:
    """An enrolled device."""

    device_id: str
    name: str
    key_pem: bytes
    certificate_pem: bytes


class Site:
    """A house with its doors open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.house = House(folder)
        self.authority = Authority(folder / "pki")
        self.tokens = EnrolmentTokens(self.house.database, self.authority.digest)
        self.keepers = People(self.house.database, self.authority.digest)
        self.token = self.keepers.local_token(folder / "pki" / "local.token")
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Site:
        await self.house.__aenter__()
        parts = Parts(self.house.engine, self.house.store, self.authority, self.tokens, self.keepers)
        identity = self.authority.certify_server()
        self.agents = agents_listener(parts)
        self.agents.bind("127.0.0.1:0", listeners.agent_credentials(identity, self.authority.pem))
        self.people = people_listener(parts, self.agents.address)
        self.people.bind("127.0.0.1:0", listeners.people_credentials(identity))
        await self.agents.start()
        await self.people.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        for channel in self._channels:
            await channel.close()
        await self.people.stop()
        await self.agents.stop()
        await self.house.__aexit__(*error)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.token)

    def people_channel(self) -> grpc.aio.Channel:
        return self._keep(
            grpc.aio.secure_channel(self.people.address, people_credentials(self.authority.pem), options=CLIENT_OPTIONS)
        )

    def agent_channel(self, member: Member, ca_pem: bytes | None = None) -> grpc.aio.Channel:
        credentials = agent_credentials(ca_pem or self.authority.pem, member.key_pem, member.certificate_pem)
        return self._keep(grpc.aio.secure_channel(self.agents.address, credentials, options=CLIENT_OPTIONS))

    def _keep(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        self._channels.append(channel)
        return channel

    async def new_token(self, **wanted: Any) -> str:
        stub = devices_pb2_grpc.DevicesStub(self.people_channel())
        request = devices_pb2.CreateEnrolmentTokenRequest(**wanted)
        return (await stub.CreateEnrolmentToken(request, metadata=self.metadata)).token

    async def enrol(self, token: str = "", name: str = "", **changed: Any) -> Member:
        secret = (token or await self.new_token()).split(".")[0]
        key, pem = signing_request()
        wanted = {"secret": secret, "signing_request_pem": pem, "name": name, "protocol_version": 1} | changed
        stub = enrolment_pb2_grpc.EnrolmentStub(self.people_channel())
        answer = await stub.Enrol(enrolment_pb2.EnrolRequest(**wanted))
        return Member(answer.device_id, answer.name, key, answer.certificate_pem.encode())


def visit(folder: Path, scenario: Callable[[Site], Awaitable[Any]]) -> Any:
    """Run a scenario at a new site."""

    async def run() -> Any:
        async with asyncio.timeout(60), Site(folder) as site:
            return await scenario(site)

    return asyncio.run(run())


async def refused(call: Awaitable[Any]) -> FleetfitError:
    """The error that a call ends with; it must read as one."""
    try:
        answer = await call
    except grpc.RpcError as error:
        fault = from_rpc_error(error)
        for word in ("Traceback", 'File "', ".py", "Error("):
            assert word not in fault.message
        metadata: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else ()
        assert b"Traceback" not in b"".join(v if isinstance(v, bytes) else v.encode() for _, v in metadata or ())
        return fault
    raise AssertionError(f"was not refused: {answer}")
