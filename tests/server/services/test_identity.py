"""Who may call what: people with tokens, devices with certificates, and nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fleetfit.core.errors import (
    FleetfitError,
    PermissionDenied,
    Superseded,
    Unauthenticated,
    Unavailable,
    VersionTooOld,
)
from fleetfit.proto.channels import bearer
from fleetfit.proto.v1 import devices_pb2, devices_pb2_grpc, work_pb2, work_pb2_grpc
from fleetfit.server.security.authority import Authority
from fleetfit.server.security.secrets import new_secret

from .site import Member, Site, refused, signing_request, visit

LIST = devices_pb2.ListDevicesRequest()


def test_people_need_a_token_that_is_this_servers(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        stub = devices_pb2_grpc.DevicesStub(site.people_channel())
        await stub.ListDevices(LIST, metadata=site.metadata)
        await stub.ListDevices(LIST, metadata=bearer(site.token.split(".")[0]))
        wrong: list[tuple[tuple[str, str], ...]] = [
            (),
            bearer(""),
            bearer(new_secret()),
            bearer("x" + site.token),
            (("authorization", site.token),),
            (("authorization", f"Basic {site.token}"),),
            (*bearer(site.token), *bearer(site.token)),
        ]
        for metadata in wrong:
            error = await refused(stub.ListDevices(LIST, metadata=metadata))
            assert isinstance(error, Unauthenticated), metadata
            assert site.token.split(".")[0] not in error.message

    visit(tmp_path / "site", scenario)


def test_an_enrolment_token_is_no_persons_token(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        stub = devices_pb2_grpc.DevicesStub(site.people_channel())
        token = await site.new_token()
        assert isinstance(await refused(stub.ListDevices(LIST, metadata=bearer(token))), Unauthenticated)

    visit(tmp_path / "site", scenario)


def test_every_service_of_people_asks_who_calls(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        channel = site.people_channel()
        for name in ("Devices/ListDevices", "Jobs/ListJobs", "Models/ListModels", "Datasets/ListDatasets",
                     "Reports/GetReport", "Artifacts/Stat"):  # fmt: skip
            call: Any = channel.unary_unary(f"/fleetfit.v1.{name}")(b"")
            assert isinstance(await refused(call), Unauthenticated), name
        for name in ("Artifacts/Download", "Jobs/WatchJob", "Models/PushModel", "Datasets/PushDataset"):
            stream: Any = channel.unary_stream(f"/fleetfit.v1.{name}")(b"")
            assert isinstance(await refused(stream.read()), Unauthenticated), name

    visit(tmp_path / "site", scenario)


@pytest.mark.parametrize("intruder", ["another CA's device", "no certificate", "self-signed by name"])
def test_agents_without_our_certificate_get_no_further_than_the_handshake(tmp_path: Path, intruder: str) -> None:
    async def scenario(site: Site) -> FleetfitError:
        key, pem = signing_request()
        if intruder == "no certificate":
            channel = grpc.aio.secure_channel(
                site.agents.address,
                grpc.ssl_channel_credentials(site.authority.pem),
                options=[("grpc.ssl_target_name_override", "fleetfit-server")],
            )
            site._keep(channel)
        else:
            other = Authority(tmp_path / "other")
            channel = site.agent_channel(Member("x", "x", key, other.certify_device(pem, "x").encode()))
        stub = work_pb2_grpc.AgentWorkStub(channel)
        return await refused(stub.Hello(work_pb2.HelloRequest(protocol_version=1), timeout=10))

    error = visit(tmp_path / "site", scenario)
    assert isinstance(error, Unavailable)


def test_an_agent_sees_that_a_server_is_another_fleets(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        member = await site.enrol()
        other = Authority(tmp_path / "other")
        stub = work_pb2_grpc.AgentWorkStub(site.agent_channel(member, other.pem))
        error = await refused(stub.Hello(work_pb2.HelloRequest(protocol_version=1), timeout=10))
        assert isinstance(error, Unavailable)
        assert "CERTIFICATE_VERIFY_FAILED" in error.private

    visit(tmp_path / "site", scenario)


def test_the_servers_own_certificate_is_no_devices(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        identity = site.authority.certify_server()
        stub = work_pb2_grpc.AgentWorkStub(site.agent_channel(Member("", "", identity.key_pem, identity.chain_pem)))
        error = await refused(stub.Hello(work_pb2.HelloRequest(protocol_version=1), timeout=10))
        assert isinstance(error, (Unauthenticated, Unavailable))

    visit(tmp_path / "site", scenario)


def test_a_certificate_of_a_device_that_is_gone(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        key, pem = signing_request()
        gone = Member("gone", "gone", key, site.authority.certify_device(pem, "gone").encode())
        stub = work_pb2_grpc.AgentWorkStub(site.agent_channel(gone))
        error = await refused(stub.Hello(work_pb2.HelloRequest(protocol_version=1)))
        assert isinstance(error, PermissionDenied)
        assert "enrol it again" in error.message

    visit(tmp_path / "site", scenario)


def test_each_listener_serves_its_own_services_only(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        member = await site.enrol()
        agent = devices_pb2_grpc.DevicesStub(site.agent_channel(member))
        assert (await refused(agent.ListDevices(LIST))).status == "UNIMPLEMENTED"
        people = work_pb2_grpc.AgentWorkStub(site.people_channel())
        error = await refused(people.Hello(work_pb2.HelloRequest(), metadata=site.metadata))
        assert error.status == "UNIMPLEMENTED"

    visit(tmp_path / "site", scenario)


@pytest.mark.parametrize(
    ("hello", "command"),
    [
        ({"protocol_version": 0}, "pip install --upgrade fleetfit"),
        ({"protocol_version": 9, "oldest_protocol_version": 9}, "pip install --upgrade 'fleetfit[server]'"),
    ],
)
def test_versions_with_nothing_in_common(tmp_path: Path, hello: dict[str, int], command: str) -> None:
    async def scenario(site: Site) -> None:
        stub = work_pb2_grpc.AgentWorkStub(site.agent_channel(await site.enrol()))
        error = await refused(stub.Hello(work_pb2.HelloRequest(**hello)))
        assert isinstance(error, VersionTooOld)
        assert command in error.message
        # A newer agent that still speaks an old version is welcome.
        answer = await stub.Hello(work_pb2.HelloRequest(protocol_version=9, oldest_protocol_version=1))
        assert answer.session_number == 1

    visit(tmp_path / "site", scenario)


def test_a_newer_session_of_the_same_device_wins(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        member = await site.enrol()
        first, second = (work_pb2_grpc.AgentWorkStub(site.agent_channel(member)) for _ in range(2))
        hello = work_pb2.HelloRequest(protocol_version=1)
        one = (await first.Hello(hello)).session_number
        older = first.Attend(work_pb2.AttendRequest(session_number=one))
        assert (await older.read()).HasField("work_available")
        assert site.house.engine.fleet.online(member.device_id)
        two = (await second.Hello(hello)).session_number
        assert two > one
        assert (await older.read()).HasField("superseded")
        assert await older.read() is grpc.aio.EOF
        newer = second.Attend(work_pb2.AttendRequest(session_number=two))
        assert (await newer.read()).HasField("work_available")
        again = first.Attend(work_pb2.AttendRequest(session_number=one))
        assert isinstance(await refused(again.read()), Superseded)
        assert site.house.engine.fleet.online(member.device_id)
        newer.cancel()

    visit(tmp_path / "site", scenario)


def test_health_needs_no_name(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        stub = health_pb2_grpc.HealthStub(site.people_channel())
        for service in ("", "fleetfit.v1.Jobs"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert (await refused(stub.Check(health_pb2.HealthCheckRequest(service="no")))).status == "NOT_FOUND"

    visit(tmp_path / "site", scenario)
