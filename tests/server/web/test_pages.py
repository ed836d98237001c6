from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import ChildFailed, Conflict, NotFound
from fleetfit.proto.v1 import common_pb2, devices_pb2, jobs_pb2
from fleetfit.server.web.pages import make_app
from fleetfit.server.web.security import is_own_host, report_policy
from fleetfit.server.web.serving import serve_pages

HOSTILE = '<script>alert("x")</script>"\'&'
REPORT = "<!doctype html><html><head><script>let a = 1 < 2;</script></head><body><script>b()</script></body></html>"


def job(name: str, state: int = jobs_pb2.JOB_STATE_DONE, **more: Any) -> jobs_pb2.Job:
    spec = jobs_pb2.JobSpec(model=HOSTILE, devices=["pi", HOSTILE])
    return jobs_pb2.Job(job_id=name, spec=spec, state=state, created_unix_ms=1_700_000_000_000, **more)


class Jobs:
    """Jobs as the engine gives them."""

    def __init__(self) -> None:
        self.found = {
            "job-done-1": job("job-done-1"),
            "job-running": job(
                "job-running",
                jobs_pb2.JOB_STATE_RUNNING,
                progress=common_pb2.Progress(activity=HOSTILE, fraction=0.25, remaining_ms=90_000),
                candidates=[jobs_pb2.CandidateStatus(device="pi", recipe=HOSTILE, state="measuring", detail=HOSTILE)],
            ),
            "job-failed": job("job-failed", jobs_pb2.JOB_STATE_FAILED, reason=HOSTILE),
        }
        self.ill = [devices_pb2.Device(name=HOSTILE, set_aside=HOSTILE)]
        self.json = '{"schema": 1}'
        self.rendered = 0
        self.render_error: Exception | None = None

    async def jobs(self, limit: int = 0) -> list[jobs_pb2.Job]:
        return list(self.found.values())

    async def job(self, text: str) -> jobs_pb2.Job:
        if text not in self.found:
            raise NotFound(f"there is no job '{text}'; `fleetfit jobs list` shows them")
        return self.found[text]

    async def set_aside(self) -> list[devices_pb2.Device]:
        return self.ill

    async def report_json(self, text: str, device: str = "") -> str:
        if (await self.job(text)).state == jobs_pb2.JOB_STATE_RUNNING:
            raise Conflict("only a job that has ended has a report; wait for it with `fleetfit jobs watch`")
        return self.json

    async def report_html(self, text: str, device: str = "") -> bytes:
        self.rendered += 1
        await asyncio.sleep(0.02)
        if self.render_error is not None:
            raise self.render_error
        return REPORT.encode()


def browse(source: Jobs, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(make_app(source))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7602") as client:
            return await scenario(client)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "path", ["/", "/jobs/job-running", "/jobs/job-failed", "/jobs/<script>", "/nothing", "/style.css"]
)
def test_every_page_is_escaped_and_allows_no_script(path: str) -> None:
    answer = browse(Jobs(), lambda client: client.get(path))
    assert "<script" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "script-src" not in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in policy
    # What the policy would forbid must not be there: styles and handlers inside the page.
    assert not re.search(r"<style|\sstyle=|\son\w+=", answer.text)


def test_the_list_leads_to_reports_and_to_running_jobs() -> None:
    text = browse(Jobs(), lambda client: client.get("/")).text
    assert 'href="/jobs/job-done-1/report"' in text
    assert 'href="/jobs/job-running"' in text
    assert 'http-equiv="refresh"' in text
    assert 'value="0.25"' in text


def test_the_list_names_devices_that_are_set_aside() -> None:
    source = Jobs()
    source.ill = [devices_pb2.Device(name="pi", set_aside="it is 50 % slower than before")]
    text = browse(source, lambda client: client.get("/")).text
    assert re.search(r"Set aside.*pi.*it is 50 % slower than before.*Jobs", text, re.S)


def test_no_job_yet() -> None:
    source = Jobs()
    source.found, source.ill = {}, []
    text = browse(source, lambda client: client.get("/")).text
    assert "fleetfit compress" in text and "refresh" not in text


def test_a_running_jobs_report_leads_to_its_progress() -> None:
    answer = browse(Jobs(), lambda client: client.get("/jobs/job-running/report", follow_redirects=True))
    assert answer.status_code == 200 and "1.5 minutes left" in answer.text


def test_a_report_may_run_its_own_scripts_and_no_others() -> None:
    answer = browse(Jobs(), lambda client: client.get("/jobs/job-done-1/report"))
    assert answer.text == REPORT
    (scripts,) = re.findall(r"script-src ([^;]*)", answer.headers["content-security-policy"])
    expected = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in (b"let a = 1 < 2;", b"b()")
    ]
    assert scripts.split() == expected
    assert "unsafe-eval" not in answer.headers["content-security-policy"]


def test_a_report_is_rendered_once_until_it_changes() -> None:
    source = Jobs()

    async def scenario(client: httpx.AsyncClient) -> list[int]:
        await asyncio.gather(*(client.get("/jobs/job-done-1/report") for _ in range(5)))
        counts = [source.rendered]
        source.json = '{"schema": 1, "changed": true}'
        await client.get("/jobs/job-done-1/report")
        await client.get("/jobs/job-done-1/report")
        return [*counts, source.rendered]

    assert browse(source, scenario) == [1, 2]


def test_a_rendering_that_failed_is_tried_again_and_says_nothing_private() -> None:
    source = Jobs()

    async def scenario(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        source.render_error = ChildFailed("the page cannot be made; see the log", outcome="crashed", private="/secret")
        failed = await client.get("/jobs/job-done-1/report")
        source.render_error = None
        return failed, await client.get("/jobs/job-done-1/report")

    failed, answer = browse(source, scenario)
    assert failed.status_code == 500 and "the page cannot be made" in failed.text and "/secret" not in failed.text
    assert answer.status_code == 200


def test_a_bug_is_an_id() -> None:
    source = Jobs()
    source.render_error = ValueError("secret")
    answer = browse(source, lambda client: client.get("/jobs/job-done-1/report"))
    assert answer.status_code == 500 and "secret" not in answer.text and "under the id" in answer.text


def test_json_is_the_report_object() -> None:
    answer = browse(Jobs(), lambda client: client.get("/jobs/job-done-1/report.json"))
    assert (answer.json(), answer.headers["content-type"]) == ({"schema": 1}, "application/json")


@pytest.mark.parametrize(
    ("path", "status"), [("/jobs/nothing", 404), ("/nothing", 404), ("/jobs/job-running/report.json", 409)]
)
def test_what_is_not_there(path: str, status: int) -> None:
    answer = browse(Jobs(), lambda client: client.get(path))
    assert answer.status_code == status and '<p class="reason">' in answer.text


def test_pages_are_for_reading() -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert browse(Jobs(), lambda client, m=method: client.request(m, "/")).status_code == 405


def test_a_name_from_elsewhere_that_leads_here_gets_nothing() -> None:
    for host in ("evil.example", "evil.example:7602", "127.0.0.1.evil.example", ""):
        answer = browse(Jobs(), lambda client, h=host: client.get("/", headers={"host": h}))
        assert answer.status_code == 421 and "job" not in answer.text, host


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7602", "127.0.0.1:1", "127.0.0.1", "[::1]:7602", "[::1]", "LOCALHOST"]
)
def test_this_machines_own_names(host: str) -> None:
    assert is_own_host(host)


@given(st.text(max_size=200))
def test_any_page_has_a_policy_without_holes(page: str) -> None:
    policy = report_policy(page)
    assert "\n" not in policy and policy.count(";") == 7
    assert not {"'unsafe-eval'", "*", "http:", "https:"} & set(re.findall(r"[^ ;]+", policy))


def test_over_a_real_socket() -> None:
    async def run() -> httpx.Response:
        async with serve_pages(Jobs(), "127.0.0.1:0") as address, httpx.AsyncClient() as client:
            return await client.get(f"http://{address}/")

    answer = asyncio.run(run())
    assert answer.status_code == 200 and "server" not in answer.headers
