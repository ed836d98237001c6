"""The two gRPC listeners: one for people and enrolment (TLS, bearer tokens), one for agents (mutual TLS)."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fleetfit.core.errors import Conflict, InvalidInput
from fleetfit.proto.channels import SERVER_OPTIONS
from fleetfit.proto.trust import split_address
from fleetfit.proto.v1 import (
    artifacts_pb2_grpc,
    devices_pb2_grpc,
    enrolment_pb2_grpc,
    jobs_pb2_grpc,
    models_pb2_grpc,
    reports_pb2_grpc,
    scoring_pb2_grpc,
    work_pb2_grpc,
)
from fleetfit.server.engine.engine import Engine
from fleetfit.server.install.installer import Offered
from fleetfit.server.security.authority import Authority, ServerIdentity
from fleetfit.server.security.enrolment import EnrolmentTokens
from fleetfit.server.security.people import People
from fleetfit.server.services.agents import AgentWork
from fleetfit.server.services.artifacts import (
    MOST_BYTES_OF_DEVICES,
    MOST_BYTES_OF_PEOPLE,
    Artifacts,
    people_may_read,
)
from fleetfit.server.services.devices import Devices
from fleetfit.server.services.edge import Context, Edge
from fleetfit.server.services.enrolment import Enrolment
from fleetfit.server.services.identity import admit_devices, admit_people, device_of
from fleetfit.server.services.jobs import Jobs, Reports
from fleetfit.server.services.library import Datasets, Models
from fleetfit.server.services.scoring import Scoring
from fleetfit.server.storage.artifacts import ArtifactStore

_STOP_S: Final = 3.0
_PEOPLE: Final = ("Devices", "Enrolment", "Artifacts", "Models", "Datasets", "Jobs", "Reports", "Scoring")
_AGENTS: Final = ("AgentWork", "Artifacts")


@dataclass(frozen=True)
class Parts:
    """What the services are made from."""

    engine: Engine
    store: ArtifactStore
    authority: Authority
    tokens: EnrolmentTokens
    people: People


class Listener:
    """One gRPC server on one address. `address` is where it really listens once it is bound."""

    def __init__(self, edge: Edge, names: tuple[str, ...]) -> None:
        self.edge = edge
        self.server = grpc.aio.server(interceptors=[edge], options=SERVER_OPTIONS)
        self.address = ""
        self._names = names
        self._stopped = False
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    def bind(self, address: str, credentials: grpc.ServerCredentials) -> None:
        """Bind to `HOST:PORT`; port 0 takes a free one. Raises Conflict where the port is taken, InvalidInput."""
        host, port = split_address(address)
        check_free(host, port)
        try:
            chosen = self.server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise Conflict(f"{address} cannot be listened on; name another address", private=str(error)) from error
        self.address = f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"

    async def start(self) -> None:
        """Serve."""
        for name in ("", *(f"fleetfit.v1.{name}" for name in self._names)):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self.server.start()

    async def stop(self) -> None:
        """End open streams, let calls with one answer finish for a moment, and close. Once is enough."""
        if self._stopped:
            return
        self._stopped = True
        await self._health.enter_graceful_shutdown()
        self.edge.end_streams()
        await self.server.stop(_STOP_S)

    def reflect(self) -> None:
        """Tell callers what can be called; only for development, because it publishes the whole interface."""
        from grpc_reflection.v1alpha import reflection

        names = [f"fleetfit.v1.{name}" for name in self._names]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self.server)


def people_listener(parts: Parts, agent_address: str, offered: Offered | None = None) -> Listener:
    """The listener for people and enrolment. `agent_address` is what enrolled devices are told, `offered` what others are."""
    listener = Listener(Edge(admit_people(parts.people)), _PEOPLE)
    server, engine = listener.server, parts.engine
    devices_pb2_grpc.add_DevicesServicer_to_server(Devices(engine.fleet, parts.tokens, offered), server)
    enrolment_pb2_grpc.add_EnrolmentServicer_to_server(
        Enrolment(engine.fleet, parts.tokens, parts.authority, agent_address), server
    )
    artifacts = Artifacts(parts.store, people_may_read, most_bytes=MOST_BYTES_OF_PEOPLE)
    artifacts_pb2_grpc.add_ArtifactsServicer_to_server(artifacts, server)
    models_pb2_grpc.add_ModelsServicer_to_server(Models(engine, parts.people), server)
    models_pb2_grpc.add_DatasetsServicer_to_server(Datasets(engine), server)
    jobs_pb2_grpc.add_JobsServicer_to_server(Jobs(engine, parts.people), server)
    scoring_pb2_grpc.add_ScoringServicer_to_server(Scoring(engine, parts.people), server)
    reports_pb2_grpc.add_ReportsServicer_to_server(Reports(engine), server)
    return listener


def agents_listener(parts: Parts) -> Listener:
    """The listener for agents."""

    async def may_read(context: Context, sha256: str) -> bool:
        return await parts.engine.may_download(device_of(context), sha256)

    listener = Listener(Edge(admit_devices), _AGENTS)
    work_pb2_grpc.add_AgentWorkServicer_to_server(AgentWork(parts.engine), listener.server)
    artifacts = Artifacts(parts.store, may_read, most_bytes=MOST_BYTES_OF_DEVICES)
    artifacts_pb2_grpc.add_ArtifactsServicer_to_server(artifacts, listener.server)
    return listener


def people_credentials(identity: ServerIdentity) -> grpc.ServerCredentials:
    """TLS; callers show no certificate."""
    return grpc.ssl_server_credentials([(identity.key_pem, identity.chain_pem)])


def agent_credentials(identity: ServerIdentity, ca_pem: bytes) -> grpc.ServerCredentials:
    """Mutual TLS: whoever has no certificate of our CA gets no further than the handshake."""
    return grpc.ssl_server_credentials(
        [(identity.key_pem, identity.chain_pem)], root_certificates=ca_pem, require_client_auth=True
    )


def check_free(host: str, port: int) -> None:
    """Raise Conflict where a port is taken, InvalidInput where this machine has no such address.

    gRPC says only that it failed, and writes lines of its own to the log.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(found[4])
            trial.listen(1)
    except socket.gaierror as error:
        raise InvalidInput(
            f"the host '{host}' is not known here; name an address of this machine", field="listen"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"{address} is taken by another program (a server that runs already?); stop it, or name another port"
            ) from error
        if error.errno == errno.EACCES:
            raise InvalidInput(
                f"{address} may not be listened on by this user; choose a port above 1023", field="listen"
            ) from error
        raise InvalidInput(
            f"{address} cannot be listened on ({error.strerror or error}); name an address of this machine",
            field="listen",
        ) from error
