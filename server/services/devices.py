"""The fleet, for people."""

from __future__ import annotations

from fleetfit.proto.v1 import devices_pb2, devices_pb2_grpc
from fleetfit.server.engine.fleet import Fleet, check_device_name, check_labels
from fleetfit.server.install.installer import Offered
from fleetfit.server.security.enrolment import EnrolmentTokens
from fleetfit.server.services.edge import Context


class Devices(devices_pb2_grpc.DevicesServicer):
    """See proto/v1/devices.proto."""

    def __init__(self, fleet: Fleet, tokens: EnrolmentTokens, offered: Offered | None = None) -> None:
        self._fleet = fleet
        self._tokens = tokens
        self._offered = offered

    async def CreateEnrolmentToken(
        self, request: devices_pb2.CreateEnrolmentTokenRequest, context: Context
    ) -> devices_pb2.CreateEnrolmentTokenResponse:
        if request.name:
            check_device_name(request.name)
        check_labels(request.labels)
        token, expires_ms = await self._tokens.create(request.name, request.labels, request.valid_ms)
        answer = devices_pb2.CreateEnrolmentTokenResponse(token=token, expires_unix_ms=expires_ms)
        installer = await self._offered.installers.current() if self._offered is not None else None
        if self._offered is not None and installer is not None:
            answer.installer_address = self._offered.address
            answer.installer_sha256 = installer.sha256
            answer.installer_targets.extend(installer.targets)
        return answer

    async def ListDevices(
        self, request: devices_pb2.ListDevicesRequest, context: Context
    ) -> devices_pb2.ListDevicesResponse:
        return devices_pb2.ListDevicesResponse(devices=await self._fleet.all(request.labels))

    async def GetDevice(self, request: devices_pb2.GetDeviceRequest, context: Context) -> devices_pb2.GetDeviceResponse:
        return devices_pb2.GetDeviceResponse(device=await self._fleet.get(request.device))

    async def SetLabels(self, request: devices_pb2.SetLabelsRequest, context: Context) -> devices_pb2.SetLabelsResponse:
        return devices_pb2.SetLabelsResponse(device=await self._fleet.set_labels(request.device, request.labels))

    async def PauseDevice(
        self, request: devices_pb2.PauseDeviceRequest, context: Context
    ) -> devices_pb2.PauseDeviceResponse:
        return devices_pb2.PauseDeviceResponse(device=await self._fleet.set_paused(request.device, True))

    async def ResumeDevice(
        self, request: devices_pb2.ResumeDeviceRequest, context: Context
    ) -> devices_pb2.ResumeDeviceResponse:
        return devices_pb2.ResumeDeviceResponse(device=await self._fleet.set_paused(request.device, False))

    async def SetHours(self, request: devices_pb2.SetHoursRequest, context: Context) -> devices_pb2.SetHoursResponse:
        return devices_pb2.SetHoursResponse(devices=await self._fleet.set_hours(request.device, request.hours))

    async def CheckDevice(
        self, request: devices_pb2.CheckDeviceRequest, context: Context
    ) -> devices_pb2.CheckDeviceResponse:
        return devices_pb2.CheckDeviceResponse(device=await self._fleet.check(request.device))

    async def ClearDevice(
        self, request: devices_pb2.ClearDeviceRequest, context: Context
    ) -> devices_pb2.ClearDeviceResponse:
        device = await self._fleet.clear(request.device, forget_history=request.forget_history)
        return devices_pb2.ClearDeviceResponse(device=device)
