"""Devices that cannot do what is asked: away, too small, or with a runtime that cannot load a build."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from fleetfit.agent.identity import load_identity
from fleetfit.proto.channels import CLIENT_OPTIONS, agent_credentials
from fleetfit.proto.v1 import (
    artifacts_pb2,
    artifacts_pb2_grpc,
    common_pb2,
    measurement_pb2,
    snapshot_pb2,
    work_pb2,
    work_pb2_grpc,
)

from .conftest import Fleet, wait_for
from .refusals import check_log, check_sentence, client_of, refused, refusing

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
# Becomes the agent with no more than 220 MB of memory of its own, for itself and for what it measures in.
SMALL = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (220_000_000, 220_000_000));"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def candidates(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The only candidate of each device."""
    return {device["device"]: device["candidates"][0] for device in report["devices"]}


def test_limits_that_nothing_meets_tell_what_is_closest_and_what_to_relax(
    standing: Fleet, files: Path, tmp_path: Path
) -> None:
    recipe = ("--recipe", str(files / "int8.yaml"))
    limits = ("--p95-ms", "0.000001", "--max-drop", "100")
    said = standing.run("compress", "net", "--data", "data", "--on", "pi", *recipe, *limits, "--wait", "--json")
    (device,) = said.json["report"]["devices"]
    assert device["selected"] is None and device["closest"]
    why = device["why"]
    assert re.search(r"Nothing meets the limits\. int8 comes closest: its p95 is .* ms, where .* is allowed", why), why
    assert re.search(r"--p95-ms \d*\.\d+", why), why
    assert "int8 comes closest" in " ".join(standing.run("report", "last").out.split())
    says = "nothing was selected for pi; `fleetfit report .*` says why, and --variant names another build"
    folder = tmp_path / "build"
    refused(standing, "pull", "last", "-o", str(folder), error="CONFLICT", says=says)
    with client_of(standing) as client, refusing("FAILED_PRECONDITION", says):
        client.pull("last", "pi", folder)
    assert not folder.exists()
    check_log(standing)


def test_a_size_out_of_reach_ends_the_making_and_says_so(standing: Fleet, files: Path) -> None:
    asked = ("compress", "net", "--data", "data", "--on", "pi", "--recipe", str(files / "int8.yaml"))
    # Another seed makes it another variant; one that is there already would be measured.
    said = standing.run(*asked, "--seed", "7", "--max-size-mb", "0.000001", "--wait", "--json")
    (device,) = said.json["report"]["devices"]
    stopped = r"stopped before quantize: .* would still have at least .* where at most 1 byte is allowed"
    assert device["selected"] is None and re.search(stopped, device["why"]), device["why"]
    (int8,) = [c for c in device["candidates"] if c["recipe"] == "int8"]
    assert int8["status"] == "skipped" and re.search(stopped, int8["rejected_because"][0])


def test_before_a_job_has_ended_there_is_neither_report_nor_build(standing: Fleet, tmp_path: Path) -> None:
    # A paused device keeps its job waiting for as long as it takes to look.
    standing.run("devices", "pause", "pi")
    try:
        standing.run("bench", "net", "--on", "pi")
        says = "only a job that has ended has a report; wait for it with `fleetfit jobs watch`"
        folder = tmp_path / "build"
        refused(standing, "report", "last", error="CONFLICT", says=says)
        refused(standing, "pull", "last", "-o", str(folder), error="CONFLICT", says=says)
        refused(standing, "jobs", "resume", "last", error="CONFLICT", says="is running; there is nothing to resume")
        with client_of(standing) as client:
            with refusing("FAILED_PRECONDITION", says):
                client.report("last")
            with refusing("FAILED_PRECONDITION", says):
                client.pull("last", "pi", folder)
        assert not folder.exists()
        standing.run("jobs", "cancel", "last")
        refused(standing, "jobs", "cancel", "last", error="CONFLICT", says="only a running job can be cancelled")
    finally:
        standing.run("devices", "resume", "pi")
    check_log(standing)


def test_a_device_that_is_away_is_waited_for_and_then_given_up(standing: Fleet) -> None:
    standing.start_agent("gone")
    assert standing.stop("gone") == 0
    job = standing.run("bench", "net", "--on", "gone", "--json").json["job"]["job_id"]
    with client_of(standing) as client:
        wait_for(lambda: "waiting for gone, which is offline" in client.job(job).progress.activity, "it to be said")
        assert "waiting for gone, which is offline" in standing.run("jobs", "show", job).out
        client.wait(job)
        (candidate,) = client.job(job).candidates
        assert candidate.state == "failed"
        assert candidate.detail == "gone was away for more than 8 s; start its agent, then resume the job"
    report = standing.run("report", job, "--json").json
    assert candidates(report)["gone"]["rejected_because"] == [candidate.detail]
    # What the sentence says to do is what helps.
    standing.start_agent("gone")
    standing.run("jobs", "resume", job)
    standing.run("jobs", "watch", job)
    assert candidates(standing.run("report", job, "--json").json)["gone"]["status"] == "measured"
    assert standing.stop("gone") == 0
    check_log(standing)


def test_a_build_that_a_device_has_no_memory_for_fails_there_only(standing: Fleet, files: Path) -> None:
    token = standing.run("devices", "enroll", "--name", "tiny", "--json").json["token"]
    agent = ["agent", "--server", standing.address, "--token", token, "--name", "tiny", "--threads", "1", "--json"]
    standing._spawn("tiny", ["-c", SMALL, "-m", "fleetfit", *agent, "--state", str(standing.root / "agents" / "tiny")])
    wait_for(lambda: "connected to" in standing.log("tiny"), "the small device to connect")
    standing.run("models", "push", str(files / "huge.onnx"))
    said = standing.run("bench", "huge", "--on", "pi", "tiny", "--wait", "--json")
    found = candidates(said.json["report"])
    assert found["pi"]["status"] == "measured"
    assert found["tiny"]["status"] == "failed"
    (reason,) = found["tiny"]["rejected_because"]
    check_sentence(reason)
    assert reason == "the build needs more memory than the device has free; try a smaller build or batch"
    table = " ".join(standing.run("report", "last").out.split())
    assert "failed" in table and reason in table
    # The device goes on.
    said = standing.run("bench", "net", "--on", "tiny", "--wait", "--json")
    assert candidates(said.json["report"])["tiny"]["status"] == "measured"
    assert standing.stop("tiny") == 0
    for name in ("tiny", "server"):
        check_log(standing, name)


def measured_here(lease: work_pb2.TaskLease, build: Path, folder: Path, fleet: Fleet) -> bytes:
    """What the real measuring process says of a build, when it is given that build for this lease."""
    (folder / "in").mkdir(parents=True)
    for named in lease.artifacts:
        (folder / "in" / named.name).write_bytes(build.read_bytes())
    (folder / "task.pb").write_bytes(lease.measure.SerializeToString())
    command = [sys.executable, "-m", "fleetfit.agent.measuring", str(folder)]
    done = subprocess.run(command, env=fleet.environment, capture_output=True, text=True, timeout=100)
    assert "Traceback" not in done.stderr
    return (folder / "result.pb.gz").read_bytes()


def test_a_build_that_a_devices_runtime_cannot_load_fails_with_its_reason(
    standing: Fleet, files: Path, tmp_path: Path
) -> None:
    """The server's runtime refuses such a file at the door, and an older one is not at hand for the device.

    So this device speaks the protocol itself, and lets the real measuring process try a build of an operator that no
    runtime has.
    """
    standing.start_agent("old")
    assert standing.stop("old") == 0
    identity = load_identity(standing.root / "agents" / "old")
    assert identity is not None
    snapshot = snapshot_pb2.DeviceSnapshot()
    snapshot.ParseFromString((standing.root / "agents" / "old" / "snapshot.pb").read_bytes())
    credentials = agent_credentials(identity.ca_pem, identity.key_pem, identity.certificate_pem)
    with grpc.secure_channel(identity.agent_address, credentials, options=CLIENT_OPTIONS) as channel:
        stub = work_pb2_grpc.AgentWorkStub(channel)
        hello = work_pb2.HelloRequest(protocol_version=1, agent_version="0.1.0", snapshot=snapshot)
        number = stub.Hello(hello, timeout=20).session_number
        attending = stub.Attend(work_pb2.AttendRequest(session_number=number), timeout=100)
        job = standing.run("bench", "net", "--on", "old", "--json").json["job"]["job_id"]

        def lease() -> Any:
            answer = stub.LeaseTask(work_pb2.LeaseTaskRequest(session_number=number), timeout=20)
            return answer.lease if answer.HasField("lease") else None

        task = wait_for(lease, "a task")
        content = measured_here(task, files / "foreign.onnx", tmp_path / "task", standing)
        result = measurement_pb2.MeasurementResult.FromString(gzip.decompress(content))
        assert result.status == measurement_pb2.MEASUREMENT_STATUS_NOT_LOADABLE
        artifact = common_pb2.ArtifactRef(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        upload = artifacts_pb2.UploadArtifactRequest(artifact=artifact, data=content)
        artifacts_pb2_grpc.ArtifactsStub(channel).Upload(iter([upload]), timeout=20)
        stub.ReportTask(
            work_pb2.ReportTaskRequest(session_number=number, task_id=task.task_id, fence=task.fence, result=artifact),
            timeout=20,
        )
        standing.run("jobs", "watch", job)
        attending.cancel()
    found = candidates(standing.run("report", job, "--json").json)["old"]
    assert found["status"] == "failed"
    (reason,) = found["rejected_because"]
    check_sentence(reason)
    assert re.search("ONNX Runtime .* cannot load the build: .*Fancy", reason)
    check_log(standing)
