"""How a device gets its identity."""

from __future__ import annotations

import asyncio

from fleetfit.proto.v1 import enrolment_pb2, enrolment_pb2_grpc
from fleetfit.server.engine.fleet import Fleet, check_device_name
from fleetfit.server.security.authority import Authority, check_request
from fleetfit.server.security.enrolment import EnrolmentTokens, Grant
from fleetfit.server.services.edge import Context
from fleetfit.server.services.versions import check_versions

_LONGEST_SECRET = 128


class Enrolment(enrolment_pb2_grpc.EnrolmentServicer):
    """See proto/v1/enrolment.proto. `agent_address` is what devices are told: where they connect from then on."""

    def __init__(self, fleet: Fleet, tokens: EnrolmentTokens, authority: Authority, agent_address: str) -> None:
        self._fleet = fleet
        self._tokens = tokens
        self._authority = authority
        self._agent_address = agent_address

    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: Context) -> enrolment_pb2.EnrolResponse:
        check_versions(request.agent_version, request.protocol_version)
        # The secret first, and used up only by a request that can be granted.
        if request.name:
            check_device_name(request.name)
        secret = request.secret[:_LONGEST_SECRET]
        await asyncio.to_thread(check_request, request.signing_request_pem)
        grant = await self._tokens.use(secret)
        try:
            # Not cut short where the caller goes away meanwhile: a device is registered with its certificate or not at all.
            return await asyncio.shield(self._register(request, grant))
        except Exception:
            await self._tokens.give_back(secret)
            raise

    async def _register(self, request: enrolment_pb2.EnrolRequest, grant: Grant) -> enrolment_pb2.EnrolResponse:
        wanted = request.name or grant.device_name or "device"
        device_id, name = await self._fleet.register(wanted, grant.labels, request.agent_version)
        certificate = await asyncio.to_thread(self._authority.certify_device, request.signing_request_pem, device_id)
        return enrolment_pb2.EnrolResponse(
            device_id=device_id,
            name=name,
            certificate_pem=certificate,
            ca_pem=self._authority.pem.decode(),
            agent_address=self._agent_address,
        )
