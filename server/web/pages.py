"""The pages' routes."""

from __future__ import annotations

import asyncio
import datetime
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fleetfit.core.digests import sha256_bytes
from fleetfit.core.errors import Conflict
from fleetfit.proto.v1 import devices_pb2, jobs_pb2
from fleetfit.server.services.edge import explain
from fleetfit.server.web.security import COMMON_HEADERS, OWN_PAGE_POLICY, is_own_host, report_policy

_HERE: Final = Path(__file__).parent
_PAGES_KEPT: Final = 16
_SHOWN_JOBS: Final = 200
_STATES: Final = {
    jobs_pb2.JOB_STATE_QUEUED: "queued",
    jobs_pb2.JOB_STATE_RUNNING: "running",
    jobs_pb2.JOB_STATE_DONE: "done",
    jobs_pb2.JOB_STATE_FAILED: "failed",
    jobs_pb2.JOB_STATE_CANCELLED: "cancelled",
}
_HTTP: Final = {
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 503,
}


class Source(Protocol):
    """What the pages show; the engine is one."""

    async def jobs(self, limit: int = 0) -> list[jobs_pb2.Job]:
        """The newest jobs."""
        ...

    async def job(self, text: str) -> jobs_pb2.Job:
        """One job."""
        ...

    async def set_aside(self) -> list[devices_pb2.Device]:
        """The devices that get no work for their health."""
        ...

    async def report_json(self, text: str, device: str = "") -> str:
        """A job's report object."""
        ...

    async def report_html(self, text: str, device: str = "") -> bytes:
        """The same as one self-contained page."""
        ...


class ReportPages:
    """Rendered reports by the digest of what they were rendered from: each is rendered once, however many ask."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: OrderedDict[str, asyncio.Task[tuple[bytes, str]]] = OrderedDict()

    async def get(self, job_id: str) -> tuple[bytes, str]:
        """A job's report page, and the policy it is sent with. Raises as `report_json` does, and ChildFailed."""
        digest = sha256_bytes((await self._source.report_json(job_id)).encode())
        rendering = self._kept.get(digest)
        if rendering is None:
            rendering = self._kept[digest] = asyncio.create_task(self._render(job_id))
            while len(self._kept) > _PAGES_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(digest)
        try:
            # A browser that goes away must not end it for the others.
            return await asyncio.shield(rendering)
        except Exception:
            self._kept.pop(digest, None)
            raise

    async def _render(self, job_id: str) -> tuple[bytes, str]:
        page = await self._source.report_html(job_id)
        return page, await asyncio.to_thread(report_policy, page.decode())


def make_app(source: Source) -> ASGIApp:
    """The pages over `source`."""
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        when=_when, state=lambda job: _STATES.get(job.state, "unknown"), short=lambda text: text[-8:]
    )
    reports = ReportPages(source)
    style = (_HERE / "templates" / "style.css").read_text()

    def page(name: str, status: int = 200, **context: Any) -> HTMLResponse:
        return HTMLResponse(templates.get_template(name).render(**context), status)

    async def index(request: Request) -> Response:
        jobs = await source.jobs(_SHOWN_JOBS)
        ill = await source.set_aside()
        return page("index.html", jobs=jobs, ill=ill, refresh=10 if any(map(_is_open, jobs)) else 0)

    async def job(request: Request) -> Response:
        found = await source.job(request.path_params["job"])
        return page("job.html", job=found, open=_is_open(found), refresh=5 if _is_open(found) else 0)

    async def report(request: Request) -> Response:
        found = await source.job(request.path_params["job"])
        try:
            content, policy = await reports.get(found.job_id)
        except Conflict:
            # Still running: its progress instead.
            return RedirectResponse(f"/jobs/{found.job_id}", 302)
        return HTMLResponse(content, headers={"Content-Security-Policy": policy})

    async def report_json(request: Request) -> Response:
        content = await source.report_json(request.path_params["job"])
        return Response(content, media_type="application/json")

    async def stylesheet(request: Request) -> Response:
        return PlainTextResponse(style, media_type="text/css", headers={"Cache-Control": "max-age=300"})

    async def wrong(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            text = "there is no such page; the list of jobs is at /" if error.status_code == 404 else error.detail
            return page("error.html", error.status_code, message=text, refresh=0)
        fault = explain(error, request.url.path)
        return page("error.html", _HTTP.get(fault.status, 500), message=fault.message, refresh=0)

    routes = [
        Route("/", index),
        Route("/jobs/{job}", job),
        Route("/jobs/{job}/report", report),
        Route("/jobs/{job}/report.json", report_json),
        Route("/style.css", stylesheet),
    ]
    guarded = [Route(route.path, _caught(route.endpoint, wrong), methods=["GET"]) for route in routes]
    return _Guard(Starlette(routes=guarded, exception_handlers={HTTPException: wrong}))


class _Guard:
    """Answers only to this machine's own names, and sends the common headers with everything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if not is_own_host(headers.get(b"host", b"").decode("latin-1")):
            await PlainTextResponse("ask for localhost or 127.0.0.1\n", 421, COMMON_HEADERS)(scope, receive, send)
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                wanted = COMMON_HEADERS | {"Content-Security-Policy": OWN_PAGE_POLICY}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in wanted.items()
                        if name.lower().encode() not in present
                    ),
                ]
            await send(message)

        await self._app(scope, receive, send_guarded)


def _caught(
    endpoint: Callable[[Request], Awaitable[Response]], wrong: Callable[[Request, Exception], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:  # noqa: BLE001 - the pages' edge: nothing leaves untranslated
            return await wrong(request, error)

    return handle


def _is_open(job: jobs_pb2.Job) -> bool:
    return job.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING)


def _when(unix_ms: int) -> str:
    if not unix_ms:
        return ""
    return datetime.datetime.fromtimestamp(unix_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
