"""Jobs and their reports, for people."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from fleetfit.core.errors import ExhaustedResource, InvalidInput
from fleetfit.proto.v1 import jobs_pb2, jobs_pb2_grpc, reports_pb2, reports_pb2_grpc
from fleetfit.server.engine.engine import Engine
from fleetfit.server.security.people import People
from fleetfit.server.services.edge import Context
from fleetfit.server.services.identity import person_of

_MOST_LISTED: Final = 1000
# gRPC's own limit on a message is 4 MiB; some of it is not content.
_MOST_REPORT_BYTES: Final = (4 << 20) - (64 << 10)


class Jobs(jobs_pb2_grpc.JobsServicer):
    """See proto/v1/jobs.proto."""

    def __init__(self, engine: Engine, people: People) -> None:
        self._engine = engine
        self._people = people

    async def PlanJob(self, request: jobs_pb2.PlanJobRequest, context: Context) -> jobs_pb2.PlanJobResponse:
        owner = person_of(context, self._people)
        return jobs_pb2.PlanJobResponse(plan=await self._engine.plan(request.spec, owner))

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Context) -> jobs_pb2.CreateJobResponse:
        owner = person_of(context, self._people)
        return jobs_pb2.CreateJobResponse(job=await self._engine.create_job(request.spec, request.request_id, owner))

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.GetJobResponse:
        return jobs_pb2.GetJobResponse(job=await self._engine.job(request.job))

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:
        if not 0 <= request.limit <= _MOST_LISTED:
            raise InvalidInput(f"choose a limit from 1 to {_MOST_LISTED}, not {request.limit}", field="limit")
        return jobs_pb2.ListJobsResponse(jobs=await self._engine.jobs(request.limit))

    async def WatchJob(
        self, request: jobs_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        async for job in self._engine.watch(request.job):
            yield jobs_pb2.WatchJobResponse(job=job)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Context) -> jobs_pb2.CancelJobResponse:
        return jobs_pb2.CancelJobResponse(job=await self._engine.cancel(request.job))

    async def ResumeJob(self, request: jobs_pb2.ResumeJobRequest, context: Context) -> jobs_pb2.ResumeJobResponse:
        return jobs_pb2.ResumeJobResponse(job=await self._engine.resume(request.job))


class Reports(reports_pb2_grpc.ReportsServicer):
    """See proto/v1/reports.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def GetReport(self, request: reports_pb2.GetReportRequest, context: Context) -> reports_pb2.GetReportResponse:
        if request.format == reports_pb2.REPORT_FORMAT_HTML:
            content, media_type = (
                await self._engine.report_html(request.job, request.device),
                "text/html; charset=utf-8",
            )
        else:
            content, media_type = (
                (await self._engine.report_json(request.job, request.device)).encode(),
                "application/json",
            )
        if len(content) > _MOST_REPORT_BYTES:
            raise ExhaustedResource(
                f"this report is {len(content) / 1e6:.1f} MB, more than one answer carries; ask for one device with --device, or "
                "read it in the server's web pages"
            )
        return reports_pb2.GetReportResponse(content=content, media_type=media_type)

    async def GetBuild(self, request: reports_pb2.GetBuildRequest, context: Context) -> reports_pb2.GetBuildResponse:
        return await self._engine.build(request.job, request.device, request.variant, request.runtime)
