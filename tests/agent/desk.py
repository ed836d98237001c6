"""The server's side of an agent, small and scripted, over a real socket and mutual TLS."""

from __future__ import annotations

import asyncio
import gzip
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fleetfit.agent.identity import Identity
from fleetfit.core.errors import FleetfitError
from fleetfit.proto.channels import SERVER_OPTIONS
from fleetfit.proto.status import status_code, trailing_metadata
from fleetfit.proto.v1 import artifacts_pb2_grpc, common_pb2, measurement_pb2, work_pb2, work_pb2_grpc
from fleetfit.server.security.authority import Authority

from .shelf import Shelf


class Desk(work_pb2_grpc.AgentWorkServicer):
    """Hands out `leases`, keeps what it is told, and fails as `errors` say: one per call, the first first."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "pki")
        self.shelf = Shelf()
        self.leases: deque[work_pb2.TaskLease] = deque()
        self.errors: dict[str, deque[FleetfitError]] = defaultdict(deque)
        self.calls: list[str] = []
        self.hellos: list[work_pb2.HelloRequest] = []
        self.renewals: list[work_pb2.RenewLeaseRequest] = []
        self.reports: list[work_pb2.ReportTaskRequest] = []
        self.cancelled = False
        self._said: asyncio.Queue[work_pb2.AttendResponse | None] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def open(self) -> None:
        """Listen; again at the same port after `shut`."""
        identity = self.authority.certify_server()
        credentials = grpc.ssl_server_credentials(
            [(identity.key_pem, identity.chain_pem)], self.authority.pem, require_client_auth=True
        )
        self._said = asyncio.Queue()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        work_pb2_grpc.add_AgentWorkServicer_to_server(self, self._server)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(self.shelf, self._server)
        self._port = self._server.add_secure_port(self.address, credentials)
        await self._server.start()

    async def shut(self) -> None:
        """Go away without a word, as a server that is killed does."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def enrol(self) -> Identity:
        """The identity of a device of this fleet."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        certificate = self.authority.certify_device(request.public_bytes(Encoding.PEM).decode(), "dev1")
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Identity("dev1", "bench", "127.0.0.1:1", self.address, key_pem, certificate.encode(), self.authority.pem)

    def offer(self, task_id: str, measure: measurement_pb2.MeasureTask | None = None, **artifacts: bytes) -> None:
        """Put a task up for lease. Artifacts are named as keywords can be: `candidate` for `candidate.onnx`."""
        named = [
            common_pb2.NamedArtifact(name=f"{name}.onnx", artifact=self.shelf.put(content))
            for name, content in artifacts.items()
        ]
        self.leases.append(work_pb2.TaskLease(task_id=task_id, fence=3, lease_ms=300, measure=measure, artifacts=named))

    def say(self, **message: Any) -> None:
        """Send a message to the attending agent."""
        self._said.put_nowait(work_pb2.AttendResponse(**message))

    def end_stream(self) -> None:
        self._said.put_nowait(None)

    def result(self, number: int = 0) -> measurement_pb2.MeasurementResult:
        """What a report names."""
        content = self.shelf.contents[self.reports[number].result.sha256]
        return measurement_pb2.MeasurementResult.FromString(gzip.decompress(content))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something to have happened here."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

    async def _enter(self, name: str, context: Any) -> None:
        self.calls.append(name)
        if self.errors[name]:
            error = self.errors[name].popleft()
            await context.abort(status_code(error), error.message, trailing_metadata(error))

    async def Hello(self, request: work_pb2.HelloRequest, context: Any) -> work_pb2.HelloResponse:
        await self._enter("Hello", context)
        self.hellos.append(request)
        return work_pb2.HelloResponse(session_number=len(self.hellos), device_name="bench")

    async def Attend(self, request: work_pb2.AttendRequest, context: Any) -> AsyncIterator[work_pb2.AttendResponse]:
        await self._enter("Attend", context)
        while (message := await self._said.get()) is not None:
            yield message

    async def LeaseTask(self, request: work_pb2.LeaseTaskRequest, context: Any) -> work_pb2.LeaseTaskResponse:
        await self._enter("LeaseTask", context)
        return work_pb2.LeaseTaskResponse(lease=self.leases.popleft() if self.leases else None)

    async def RenewLease(self, request: work_pb2.RenewLeaseRequest, context: Any) -> work_pb2.RenewLeaseResponse:
        await self._enter("RenewLease", context)
        self.renewals.append(request)
        return work_pb2.RenewLeaseResponse(lease_ms=300, cancelled=self.cancelled)

    async def ReportTask(self, request: work_pb2.ReportTaskRequest, context: Any) -> work_pb2.ReportTaskResponse:
        await self._enter("ReportTask", context)
        self.reports.append(request)
        return work_pb2.ReportTaskResponse(first=True)


class PaperChild:
    """In place of the measuring child: a result of one line, once `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = 0
        self.killed = 0

    async def __call__(self, arguments: list[str], limits: Any, *, cwd: Path, environment: Any = None) -> Any:
        from fleetfit.core.children import ChildOutcome

        self.started += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.killed += 1
            raise
        result = measurement_pb2.MeasurementResult(status=1, message=cwd.name)
        (cwd / "result.pb.gz").write_bytes(gzip.compress(result.SerializeToString()))
        return ChildOutcome("ok", 0)
