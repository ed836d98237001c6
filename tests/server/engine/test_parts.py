"""A model with parts from push to pull: kept, checked with it, handed to agents, limited, and given beside its builds."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fleetfit.core.errors import InvalidInput, NotFound
from fleetfit.proto.v1 import jobs_pb2, models_pb2, work_pb2
from fleetfit.proto.versions import CHAINS
from fleetfit.server.engine.parts import check_end_to_end, parts_notes
from fleetfit.server.engine.planning import PlannedDevice, PlannedModel
from fleetfit.server.report.summary import Chain, Figure, MeasurementSummary

from .harness import PARTS, PRUNED, House, measured, request

pytestmark = pytest.mark.usefixtures("paper_reports")


async def push(house: House, **contents: bytes) -> models_pb2.Model:
    """`net` with these parts, as the service has it registered."""
    model = await house.upload(b"a model")
    parts = {name: (await house.upload(content)).sha256 for name, content in contents.items()}
    answers = [one async for one in house.engine.push_model("net", model.sha256, "pt2", parts=parts)]
    return answers[-1].model


def with_chain(lease: work_pb2.TaskLease) -> MeasurementSummary:
    """What `measured` says, and that the whole chain takes twice as long."""
    found = measured(lease)
    if found.latency is None or not lease.measure.HasField("pre"):
        return found
    usual = Figure(value=4.0, low=3.9, high=4.1)
    chain = Chain(p50_ms=usual, p95_ms=5.0, p99_ms=None, samples=200, processes=4, steady=True, ratio=usual, parts={})
    return found.model_copy(update={"chain": chain})


def test_parts_are_kept_with_the_model_and_make_another_version(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            plain = await push(house)
            assert not plain.HasField("pre") and not plain.HasField("post")
            first = await push(house, pre=b"before", post=b"behind")
            assert (first.version, first.pre.artifact.size_bytes, first.post.artifact.size_bytes) == (2, 6, 6)
            assert [t.name for t in first.pre.inputs] == ["pixels"]
            assert [t.name for t in first.post.outputs] == ["label"]
            task, inputs = house.executor.last["intake_model"]
            assert set(inputs) == {"model", "pre", "post"} and inputs["pre"] == first.pre.artifact.sha256
            again = await push(house, pre=b"before", post=b"behind")
            assert again.model_id == first.model_id
            other = await push(house, pre=b"before")
            assert other.version == 3 and not other.HasField("post")
            assert (await push(house)).model_id == plain.model_id
            with pytest.raises(NotFound):
                await house.engine.library.push_model("net", first.artifact.sha256, "pt2", parts={"pre": "0" * 64})

    asyncio.run(run())


def test_a_job_times_the_chain_and_its_build_comes_with_the_parts(tmp_path: Path) -> None:
    async def run() -> None:
        leases: list[work_pb2.TaskLease] = []

        def answer(lease: work_pb2.TaskLease) -> MeasurementSummary:
            leases.append(lease)
            return with_chain(lease)

        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            model = await push(house, pre=b"before", post=b"behind")
            agent.answer = answer
            house.employ(agent)
            limits = jobs_pb2.Limits(p95_ms=3.0, p95_end_to_end_ms=6.0)
            plan = await house.engine.plan(request(PRUNED, limits=limits))
            assert any("the limit of 3 ms on p95 is on the model alone" in note for note in plan.notes)
            without = request(PRUNED)
            without.model = "net:1"
            plain = await house.engine.plan(without)
            assert plan.candidates[0].download_bytes - plain.candidates[0].download_bytes == 12
            assert plan.expected_total_ms > plain.expected_total_ms
            job = await house.engine.create_job(request(PRUNED, limits=limits), "r")
            await house.ended(job.job_id)
            report = await house.report(job.job_id)
            (device,) = report["devices"]
            chosen = next(c for c in device["candidates"] if c["selected"])
            assert chosen["end_to_end_ms"]["p50"] == 4.0 and chosen["latency_ms"]["p50"] == 1.0
            assert "The limit on p95 was 3 ms for the model alone and 6 ms end to end." in device["why"]
            assert report["parts"]["pre"] == {"sha256": model.pre.artifact.sha256, "size_bytes": 6}
            for lease in leases:
                names = {named.name for named in lease.artifacts}
                timed = not lease.measure.metric_only
                assert lease.measure.HasField("pre") == lease.measure.HasField("post") == timed
                assert ({"pre.onnx", "post.onnx"} <= names) == timed
                if timed:
                    assert lease.measure.pre.inputs[0].name == "pixels" and lease.measure.method.chain_processes > 0
            assert {lease.measure.metric_only for lease in leases} == {True, False}

            built = await house.engine.build(job.job_id, "one", "")
            manifest = json.loads(built.manifest_json)
            assert [part.name for part in built.parts] == ["pre.onnx", "post.onnx"]
            assert manifest["parts"]["post"]["sha256"] == model.post.artifact.sha256
            assert manifest["parts"]["pre"]["inputs"][0]["name"] == "pixels"

            tight = request(PRUNED, limits=jobs_pb2.Limits(p95_end_to_end_ms=4.5))
            again = await house.engine.create_job(tight, "r2")
            await house.ended(again.job_id)
            (device,) = (await house.report(again.job_id))["devices"]
            assert device["selected"] is None and "--p95-end-to-end-ms 5" in device["why"]

    asyncio.run(run())


def test_a_limit_on_a_chain_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            await house.furnish("one")
            limits = jobs_pb2.Limits(p95_end_to_end_ms=6.0)
            with pytest.raises(InvalidInput, match=r"net has no parts .* give --p95-ms"):
                await house.engine.create_job(request(PRUNED, limits=limits), "r")

    asyncio.run(run())


def test_a_plan_says_who_cannot_time_parts(planned_model: PlannedModel, planned_device: PlannedDevice) -> None:
    parted = replace(planned_model, facts=planned_model.facts.model_copy(update={"parts": PARTS}))
    new = replace(planned_device, name="new", capabilities=frozenset({CHAINS}))
    spec = jobs_pb2.JobSpec()
    assert parts_notes(spec, planned_model, [planned_device]) == []
    assert parts_notes(spec, parted, [new]) == []
    (note,) = parts_notes(spec, parted, [planned_device, new])
    assert note.startswith("pi cannot time pre and post parts")
    check_end_to_end(jobs_pb2.JobSpec(limits=jobs_pb2.Limits(p95_end_to_end_ms=1)), parted)
