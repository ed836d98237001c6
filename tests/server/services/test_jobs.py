"""A whole job over the wire: two devices with certificates of their own, and a person who watches."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fleetfit.core.errors import Conflict, InvalidInput, LeaseLost, NotFound, PermissionDenied
from fleetfit.proto.transfer import download_file, upload_file
from fleetfit.proto.v1 import (
    common_pb2,
    devices_pb2,
    devices_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
    snapshot_pb2,
    work_pb2,
    work_pb2_grpc,
)
from fleetfit.server.engine.ingestion import Ingestion

from ..engine.harness import PRUNED, measured, paper_child, request
from .site import Member, Site, refused, visit


@pytest.fixture(autouse=True)
def paper_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ingestion, "_child", paper_child)


class Remote:
    """A device at the other end of a channel."""

    def __init__(self, site: Site, member: Member) -> None:
        self.member = member
        self.channel = site.agent_channel(member)
        self.stub = work_pb2_grpc.AgentWorkStub(self.channel)
        self.session = 0

    async def connect(self, cores: int = 2) -> Any:
        """Say hello; the session's stream."""
        snapshot = snapshot_pb2.DeviceSnapshot(
            machine="x86_64",
            processor=snapshot_pb2.Processor(model="Test CPU", usable_cores=cores),
            threads=1,
            host_name=self.member.name,
            runtimes=[snapshot_pb2.Runtime(name="onnxruntime", version="1", available=True, formats=["onnx"])],
        )
        hello = work_pb2.HelloRequest(agent_version="1", protocol_version=1, snapshot=snapshot)
        self.session = (await self.stub.Hello(hello)).session_number
        return self.stub.Attend(work_pb2.AttendRequest(session_number=self.session))

    async def lease(self) -> work_pb2.TaskLease | None:
        answer = await self.stub.LeaseTask(work_pb2.LeaseTaskRequest(session_number=self.session))
        return answer.lease if answer.HasField("lease") else None

    async def must_lease(self) -> work_pb2.TaskLease:
        while (lease := await self.lease()) is None:
            await asyncio.sleep(0.05)
        return lease

    async def report(self, lease: work_pb2.TaskLease, folder: Path) -> work_pb2.ReportTaskResponse:
        path = folder / f"{lease.task_id}.{lease.fence}"
        path.write_text(measured(lease).model_dump_json())
        result = await upload_file(self.channel, path)
        return await self.stub.ReportTask(
            work_pb2.ReportTaskRequest(
                session_number=self.session, task_id=lease.task_id, fence=lease.fence, result=result
            )
        )

    async def serve(self, stream: Any, folder: Path) -> None:
        """Do everything there is to do, waking up when told."""
        while True:
            await stream.read()
            while (lease := await self.lease()) is not None:
                await self.report(lease, folder)


async def furnish(site: Site, folder: Path) -> None:
    """A model and data, over the wire."""
    channel = site.people_channel()
    (folder / "model").write_bytes(b"a model")
    (folder / "data").write_bytes(b"some data")
    model = await upload_file(channel, folder / "model", metadata=site.metadata)
    data = await upload_file(channel, folder / "data", metadata=site.metadata)
    pushed = [
        message
        async for message in models_pb2_grpc.ModelsStub(channel).PushModel(
            models_pb2.PushModelRequest(name="net", artifact=model, format="pt2"), metadata=site.metadata
        )
    ]
    assert pushed[-1].model.state == models_pb2.INTAKE_STATE_ACCEPTED
    wanted = models_pb2.PushDatasetRequest(name="flowers", artifact=data, model="net")
    async for message in models_pb2_grpc.DatasetsStub(channel).PushDataset(wanted, metadata=site.metadata):
        last = message
    assert last.dataset.state == models_pb2.INTAKE_STATE_ACCEPTED


async def two_devices(site: Site) -> tuple[Remote, Remote]:
    return Remote(site, await site.enrol(name="a")), Remote(site, await site.enrol(name="b"))


async def create(site: Site, spec: jobs_pb2.JobSpec) -> jobs_pb2.Job:
    stub = jobs_pb2_grpc.JobsStub(site.people_channel())
    return (await stub.CreateJob(jobs_pb2.CreateJobRequest(spec=spec), metadata=site.metadata)).job


def test_a_job_from_request_to_report(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await furnish(site, tmp_path)
        devices = await two_devices(site)
        serving = []
        for device in devices:
            stream = await device.connect()
            serving.append(asyncio.create_task(device.serve(stream, tmp_path)))
        jobs = jobs_pb2_grpc.JobsStub(site.people_channel())
        plan = (await jobs.PlanJob(jobs_pb2.PlanJobRequest(spec=request(PRUNED)), metadata=site.metadata)).plan
        assert {candidate.device for candidate in plan.candidates} == {"a", "b"}
        job = await create(site, request(PRUNED))
        seen = []
        async for message in jobs.WatchJob(jobs_pb2.WatchJobRequest(job=job.job_id), metadata=site.metadata):
            seen.append(message.job.state)
        assert seen[-1] == jobs_pb2.JOB_STATE_DONE
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        reports = reports_pb2_grpc.ReportsStub(site.people_channel())
        answer = await reports.GetReport(reports_pb2.GetReportRequest(job="last"), metadata=site.metadata)
        assert {found["device"] for found in json.loads(answer.content)["devices"]} == {"a", "b"}
        assert answer.media_type == "application/json"
        one = reports_pb2.GetReportRequest(job="last", device="a", format=reports_pb2.REPORT_FORMAT_HTML)
        page = await reports.GetReport(one, metadata=site.metadata)
        assert page.media_type.startswith("text/html") and b"<html" in page.content
        listed = await jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=site.metadata)
        assert [found.job_id for found in listed.jobs] == [job.job_id]
        error = await refused(jobs.CancelJob(jobs_pb2.CancelJobRequest(job="last"), metadata=site.metadata))
        assert isinstance(error, Conflict)
        models = models_pb2_grpc.ModelsStub(site.people_channel())
        shown = next(
            c["variant"] for c in json.loads(answer.content)["devices"][0]["candidates"] if c["role"] == "recipe"
        )
        variant = await models.GetVariant(models_pb2.GetVariantRequest(variant=shown[:6]), metadata=site.metadata)
        assert variant.variant.startswith(shown) and "activation_pruning" in variant.recipe
        assert json.loads(variant.lineage_json)["trainable"]["sha256"] == variant.trainable.sha256
        await download_file(site.people_channel(), variant.trainable, tmp_path / "layers", metadata=site.metadata)
        assert (tmp_path / "layers").read_text().startswith("layers of")
        (tmp_path / "trained").write_bytes(b"trained")
        file = await upload_file(site.people_channel(), tmp_path / "trained", metadata=site.metadata)
        wanted = models_pb2.PushRecoveredRequest(variant=shown, artifact=file)
        told = [message async for message in models.PushRecovered(wanted, metadata=site.metadata)]
        recovered = told[-1].recovered
        assert (recovered.state, recovered.variant) == (models_pb2.INTAKE_STATE_ACCEPTED, variant.variant)
        spec = request(PRUNED, recovered=[recovered.recovered[:10]])
        plan = (await jobs.PlanJob(jobs_pb2.PlanJobRequest(spec=spec), metadata=site.metadata)).plan
        assert "pruned-recovered" in {candidate.recipe for candidate in plan.candidates}
        wanted.variant = f"{shown[:9]}x"
        assert isinstance(await refused(models.PushRecovered(wanted, metadata=site.metadata).read()), NotFound)

        near = models_pb2.GetVariantRequest(variant=f"{shown[:9]}x")
        unknown = await refused(models.GetVariant(near, metadata=site.metadata))
        assert isinstance(unknown, NotFound) and f"did you mean {shown}" in unknown.message
        brief = models_pb2.GetVariantRequest(variant=shown[:5])
        assert isinstance(await refused(models.GetVariant(brief, metadata=site.metadata)), InvalidInput)

    visit(tmp_path / "site", scenario)


def test_a_device_reads_its_own_tasks_content_and_no_other_devices(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await furnish(site, tmp_path)
        ours, theirs = await two_devices(site)
        await ours.connect()
        await theirs.connect()
        await create(site, request(PRUNED, devices=("a",)))
        lease = await ours.must_lease()
        assert len(lease.artifacts) >= 2
        assert await theirs.lease() is None
        for named in lease.artifacts:
            with pytest.raises(PermissionDenied):
                await download_file(theirs.channel, named.artifact, tmp_path / "stolen")
            await download_file(ours.channel, named.artifact, tmp_path / f"own-{named.name}")
        # Nor can it report, renew or keep another's task.
        stolen = work_pb2.RenewLeaseRequest(session_number=theirs.session, task_id=lease.task_id, fence=lease.fence)
        assert isinstance(await refused(theirs.stub.RenewLease(stolen)), NotFound)
        assert (await ours.report(lease, tmp_path)).first
        assert not (await ours.report(lease, tmp_path)).first, "a repeated report counts once"
        # With the task its content is closed again.
        with pytest.raises(PermissionDenied):
            await download_file(ours.channel, lease.artifacts[0].artifact, tmp_path / "later")

    visit(tmp_path / "site", scenario)
    assert not (tmp_path / "stolen").exists()


def test_a_cancelled_job_calls_its_tasks_back(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        await furnish(site, tmp_path)
        device, _ = await two_devices(site)
        stream = await device.connect()
        job = await create(site, request(PRUNED, devices=("a",)))
        lease = await device.must_lease()
        jobs = jobs_pb2_grpc.JobsStub(site.people_channel())
        await jobs.CancelJob(jobs_pb2.CancelJobRequest(job=job.job_id), metadata=site.metadata)
        while (message := await stream.read()).HasField("work_available"):
            pass
        assert message.cancel_task.task_id == lease.task_id
        renewal = work_pb2.RenewLeaseRequest(session_number=device.session, task_id=lease.task_id, fence=lease.fence)
        assert (await device.stub.RenewLease(renewal)).cancelled
        path = tmp_path / "late"
        path.write_text("late")
        late = await upload_file(device.channel, path)
        report = work_pb2.ReportTaskRequest(
            session_number=device.session, task_id=lease.task_id, fence=lease.fence, result=late
        )
        assert isinstance(await refused(device.stub.ReportTask(report)), LeaseLost)
        stream.cancel()

    visit(tmp_path / "site", scenario)


def test_a_device_is_online_while_its_stream_is_open(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        device, _ = await two_devices(site)
        stub = devices_pb2_grpc.DevicesStub(site.people_channel())

        async def state() -> int:
            answer = await stub.GetDevice(devices_pb2.GetDeviceRequest(device="a"), metadata=site.metadata)
            return answer.device.state

        stream = await device.connect()
        await stream.read()
        assert await state() == devices_pb2.DEVICE_STATE_ONLINE
        paused = await stub.PauseDevice(devices_pb2.PauseDeviceRequest(device="a"), metadata=site.metadata)
        assert paused.device.paused
        resumed = await stub.ResumeDevice(devices_pb2.ResumeDeviceRequest(device="a"), metadata=site.metadata)
        assert not resumed.device.paused
        labelled = devices_pb2.SetLabelsRequest(device="a", labels=["lab"])
        await stub.SetLabels(labelled, metadata=site.metadata)
        found = await stub.ListDevices(devices_pb2.ListDevicesRequest(labels=["lab"]), metadata=site.metadata)
        assert [one.name for one in found.devices] == ["a"]
        await device.channel.close()
        async with asyncio.timeout(10):
            while await state() != devices_pb2.DEVICE_STATE_OFFLINE:
                await asyncio.sleep(0.02)

    visit(tmp_path / "site", scenario)


def test_what_is_not_there_and_what_makes_no_sense(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        channel = site.people_channel()
        jobs, models = jobs_pb2_grpc.JobsStub(channel), models_pb2_grpc.ModelsStub(channel)
        reports, devices = reports_pb2_grpc.ReportsStub(channel), devices_pb2_grpc.DevicesStub(channel)
        spec = request(PRUNED)
        missing = common_pb2.ArtifactRef(sha256="0" * 64)
        cases: list[tuple[Any, type[Exception]]] = [
            (jobs.GetJob(jobs_pb2.GetJobRequest(job="nothing"), metadata=site.metadata), NotFound),
            (jobs.GetJob(jobs_pb2.GetJobRequest(job="x"), metadata=site.metadata), InvalidInput),
            (jobs.ListJobs(jobs_pb2.ListJobsRequest(limit=-1), metadata=site.metadata), InvalidInput),
            (jobs.CreateJob(jobs_pb2.CreateJobRequest(spec=spec), metadata=site.metadata), NotFound),
            (jobs.PlanJob(jobs_pb2.PlanJobRequest(), metadata=site.metadata), Exception),
            (models.GetModel(models_pb2.GetModelRequest(model="nothing"), metadata=site.metadata), NotFound),
            (
                models.PushModel(
                    models_pb2.PushModelRequest(name="m", artifact=missing, format="pt2"), metadata=site.metadata
                ).read(),
                NotFound,
            ),
            (reports.GetReport(reports_pb2.GetReportRequest(job="last"), metadata=site.metadata), NotFound),
            (reports.GetBuild(reports_pb2.GetBuildRequest(job="last"), metadata=site.metadata), NotFound),
            (devices.GetDevice(devices_pb2.GetDeviceRequest(device="nothing"), metadata=site.metadata), NotFound),
            (jobs.WatchJob(jobs_pb2.WatchJobRequest(job="nothing"), metadata=site.metadata).read(), NotFound),
        ]
        for number, (call, kind) in enumerate(cases):
            error = await refused(call)
            assert isinstance(error, kind) and error.code != "INTERNAL", (number, error)

    visit(tmp_path / "site", scenario)
