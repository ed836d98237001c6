"""What agents use, over mutual TLS: sessions, leases and reports. The certificate says which device calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fleetfit
from fleetfit.proto.v1 import work_pb2, work_pb2_grpc
from fleetfit.proto.versions import PROTOCOL_VERSION, SERVER_CAPABILITIES
from fleetfit.server.engine.engine import Engine
from fleetfit.server.services.edge import Context
from fleetfit.server.services.identity import device_of
from fleetfit.server.services.versions import check_versions


class AgentWork(work_pb2_grpc.AgentWorkServicer):
    """See proto/v1/work.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Hello(self, request: work_pb2.HelloRequest, context: Context) -> work_pb2.HelloResponse:
        device_id = device_of(context)
        check_versions(request.agent_version, request.protocol_version, request.oldest_protocol_version)
        number, name, profile = await self._engine.fleet.hello(device_id, request)
        return work_pb2.HelloResponse(
            session_number=number,
            server_version=fleetfit.__version__,
            protocol_version=PROTOCOL_VERSION,
            capabilities=SERVER_CAPABILITIES,
            device_name=name,
            profile_json=profile,
        )

    async def Attend(self, request: work_pb2.AttendRequest, context: Context) -> AsyncIterator[work_pb2.AttendResponse]:
        device_id = device_of(context)
        fleet = self._engine.fleet
        await fleet.check_session(device_id, request.session_number)
        messages = fleet.attend(device_id, request.session_number)
        try:
            ended = False
            while not ended:
                message = await messages.get()
                ended = message.HasField("superseded")
                yield message
        finally:
            await fleet.leave(device_id, request.session_number)

    async def LeaseTask(self, request: work_pb2.LeaseTaskRequest, context: Context) -> work_pb2.LeaseTaskResponse:
        return work_pb2.LeaseTaskResponse(lease=await self._engine.lease(device_of(context), request.session_number))

    async def RenewLease(self, request: work_pb2.RenewLeaseRequest, context: Context) -> work_pb2.RenewLeaseResponse:
        return await self._engine.renew(device_of(context), request)

    async def ReportTask(self, request: work_pb2.ReportTaskRequest, context: Context) -> work_pb2.ReportTaskResponse:
        return await self._engine.report(device_of(context), request)
