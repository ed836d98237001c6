from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import CompressFacts
from fleetfit.core.errors import Conflict, InvalidInput, NotFound, UnsupportedHere
from fleetfit.proto.v1 import common_pb2, jobs_pb2, work_pb2
from fleetfit.server.engine.engine import Settings
from fleetfit.server.report.summary import MeasurementSummary
from fleetfit.server.storage.tables import CandidateRow, DeviceRow, VariantRow

from .harness import (
    ALL_RECIPES,
    CUDA,
    DONE,
    PRUNED,
    TRAINED,
    House,
    measured,
    request,
    states,
)

pytestmark = pytest.mark.usefixtures("paper_reports")


def test_a_whole_job(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            agents = await house.furnish("one", "two")
            for agent in agents:
                house.employ(agent)
            seen: list[jobs_pb2.Job] = []
            job = await house.engine.create_job(request(), "r1")
            async for message in house.engine.watch(job.job_id):
                seen.append(message)
            last = seen[-1]
            assert last.state == DONE
            assert set(states(last).values()) == {"measured"}
            assert [c.recipe for c in last.candidates] == list(ALL_RECIPES) * 2
            assert last.progress.fraction == 1
            assert all(0 <= m.progress.fraction <= 1 for m in seen)
            assert any(m.progress.remaining_ms > 0 for m in seen)
            assert last.finished_unix_ms >= last.created_unix_ms
            report = await house.report(job.job_id)
            assert [d["device"] for d in report["devices"]] == ["one", "two"]
            assert all(d["selected"] for d in report["devices"])
            counts = await house.measurements()
            assert set(counts.values()) == {1}
            assert sorted(split for _, split in counts) == ["test"] * 6 + ["validation"] * 8
            assert {name: house.executor.runs[name] for name in ALL_RECIPES} == dict.fromkeys(ALL_RECIPES, 1)
            only = json.loads(await house.engine.report_json("last", "two"))
            assert [d["device"] for d in only["devices"]] == ["two"]
            assert (await house.engine.report_html("last")).startswith(b"<html>")
            variants = await house.database.read(lambda session: list(session.scalars(select(VariantRow.facts))))
            kept = [CompressFacts.model_validate(facts).trainable for facts in variants]
            assert len(kept) == len(ALL_RECIPES) and all(one is not None for one in kept)
            assert all(b"layers of" in house.store.path(one.sha256).read_bytes() for one in kept if one is not None)

    asyncio.run(run())


def test_a_second_job_makes_nothing_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            first = await house.ended((await house.engine.create_job(request(), "")).job_id)
            plan = await house.engine.plan(request())
            assert all(c.cached and not c.expected_compress_ms for c in plan.candidates)
            second = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert first.job_id != second.job_id
            assert {house.executor.runs[name] for name in ALL_RECIPES} == {1}
            assert second.state == DONE
            counts = await house.measurements()
            assert set(counts.values()) == {1}
            assert len(counts) == 14, "each job measures for itself: the device may have changed"

    asyncio.run(run())


def test_a_recipe_is_made_once_for_each_vector_width(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            wide = ["avx2", "fma", "avx512f", "avx512_vnni"]
            for agent in await house.furnish("one", "two", "three", flags={"two": wide, "three": wide}):
                house.employ(agent)
            plan = await house.engine.plan(request(PRUNED))
            assert plan.notes[0] == (
                "pruned: widths are rounded up to multiples of 8 for one (generic) and of 16 for three (x86-avx512-vnni), "
                "two (x86-avx512-vnni); 'round_to' in a recipe overrides this"
            )
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert set(states(job).values()) == {"measured"}
            assert house.executor.runs["original"] == 1 and house.executor.runs["pruned"] == 2
            keys = (
                select(DeviceRow.name, VariantRow.recipe)
                .join(CandidateRow, CandidateRow.device_id == DeviceRow.id)
                .join(VariantRow, VariantRow.key == CandidateRow.variant_key)
            )
            rows = await house.database.read(lambda s: [(name, recipe) for name, recipe in s.execute(keys) if recipe])
            widths = {name: Recipe.from_yaml(recipe).steps[0].parameters()["round_to"] for name, recipe in rows}
            assert widths == {"one": 8, "two": 16, "three": 16}

    asyncio.run(run())


def test_what_cannot_meet_one_jobs_limits_is_made_for_another(tmp_path: Path) -> None:
    def within(points: float) -> jobs_pb2.JobSpec:
        return request(PRUNED, limits=jobs_pb2.Limits(max_drop_points=points))

    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.losses["pruned"] = 3.0
            strict = await house.ended((await house.engine.create_job(within(1), "")).job_id)
            assert strict.state == DONE
            assert states(strict) == {"one original": "measured", "one pruned": "skipped"}
            (found,) = [
                c for c in (await house.report(strict.job_id))["devices"][0]["candidates"] if c["role"] == "recipe"
            ]
            assert found["status"] == "skipped" and not found["meets_limits"]
            assert found["rejected_because"] == ["stopped: it loses 3, where 1 is allowed"]
            with pytest.raises(Conflict, match="nothing to resume"):
                await house.engine.resume(strict.job_id)
            # Two wait while something else is made; it is made for neither, and each hears of its own limit.
            house.executor.gate.clear()
            await house.engine.create_job(request(TRAINED), "")
            both = {points: (await house.engine.create_job(within(points), "")).job_id for points in (1, 2)}
            house.executor.gate.set()
            for points, job_id in both.items():
                job = await house.ended(job_id)
                assert [c.detail for c in job.candidates][1] == f"stopped: it loses 3, where {points} is allowed"
            assert house.executor.runs["pruned"] == 2
            # One that may lose more is asked for while it is made for one that may not.
            house.executor.gate.clear()
            first = (await house.engine.create_job(within(1), "")).job_id
            while not house.executor.running:
                await asyncio.sleep(0.01)
            second = (await house.engine.create_job(within(5), "")).job_id
            house.executor.gate.set()
            assert states(await house.ended(first))["one pruned"] == "skipped"
            assert states(await house.ended(second))["one pruned"] == "measured"
            assert house.executor.runs["pruned"] == 4
            # It is there now, for strict ones too: that it loses too much is then measured.
            again = await house.ended((await house.engine.create_job(within(1), "")).job_id)
            assert states(again)["one pruned"] == "measured" and house.executor.runs["pruned"] == 4

    asyncio.run(run())


def test_a_variant_is_stopped_for_nobody_who_named_no_limit(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.losses |= {"pruned": 3.0, "original": 3.0, "original-retrained": 3.0}
            quick = jobs_pb2.Limits(p95_ms=1.0)
            job = await house.ended((await house.engine.create_job(request(PRUNED, limits=quick), "")).job_id)
            assert set(states(job).values()) == {"measured"}
            strict = jobs_pb2.Limits(max_drop_points=0.5)
            job = await house.ended((await house.engine.create_job(request(limits=strict), "")).job_id)
            assert set(states(job).values()) == {"measured"}, "baselines are made whatever they lose"

    asyncio.run(run())


def test_jobs_at_the_same_time_share_what_is_being_made(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one", "two"):
                house.employ(agent)
            house.executor.gate.clear()
            jobs = [await house.engine.create_job(request(), "") for _ in range(3)]
            house.executor.gate.set()
            ended = await asyncio.gather(*(house.ended(job.job_id) for job in jobs))
            assert {job.state for job in ended} == {DONE}
            assert {house.executor.runs[name] for name in ALL_RECIPES} == {1}
            assert set((await house.measurements()).values()) == {1}

    asyncio.run(run())


def test_the_same_request_id_is_the_same_job(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            await house.furnish("one")
            both = await asyncio.gather(*(house.engine.create_job(request(), "same") for _ in range(5)))
            assert len({job.job_id for job in both}) == 1
            with pytest.raises(Conflict, match="use a new one"):
                await house.engine.create_job(request(PRUNED), "same")
            assert len(await house.engine.jobs()) == 1

    asyncio.run(run())


def test_a_benchmark_without_data(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_BENCH, model="net", devices=["one"])
            job = await house.ended((await house.engine.create_job(spec, "")).job_id)
            assert job.state == DONE
            assert states(job) == {"one original": "measured"}
            assert await house.measurements() == {(next(iter(await house.measurements()))[0], ""): 1}

    asyncio.run(run())


def test_what_was_planned_under_other_threads_is_made_under_the_key_of_now(tmp_path: Path) -> None:
    async def run() -> None:
        settings = Settings(method="quick", tick_s=0.05, compress_threads=1)
        async with House(tmp_path, settings=settings) as house:
            agents = await house.furnish("one")
            house.executor.gate.clear()
            job = await house.engine.create_job(request(PRUNED), "")
            planned = await house.database.read(lambda s: set(s.scalars(select(CandidateRow.variant_key))))
        async with House(tmp_path, settings=replace(settings, compress_threads=2)) as house:
            house.employ(agents[0])
            assert set(states(await house.ended(job.job_id)).values()) == {"measured"}
            made = await house.database.read(lambda s: set(s.scalars(select(CandidateRow.variant_key))))
            assert not made & planned
            # A job that is asked for now finds what was made.
            again = await house.engine.plan(request(PRUNED))
            assert all(candidate.cached for candidate in again.candidates)

    asyncio.run(run())


def test_only_what_trains_is_made_on_cuda_and_anew_where_the_device_is_another(tmp_path: Path) -> None:
    def stored(session: Session) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {"trains": set(), "does not": set()}
        for row in session.scalars(select(VariantRow)):
            found["trains" if "distill" in row.recipe else "does not"].add(row.key)
        return found

    async def run() -> None:
        on_processor = Settings(method="quick", tick_s=0.05)
        async with House(tmp_path, settings=on_processor) as house:
            agents = await house.furnish("one")
            house.employ(agents[0])
            await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert set(house.executor.computes.values()) == {"cpu"}
            before = await house.database.read(stored)
        async with House(tmp_path, settings=replace(on_processor, cuda=CUDA)) as house:
            house.employ(agents[0])
            house.executor.cuda = CUDA
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert set(states(job).values()) == {"measured"}
            assert house.executor.computes == {"trained": "cuda", "original-retrained": "cuda"}
            after = await house.database.read(stored)
            assert after["does not"] == before["does not"] and len(after["trains"] - before["trains"]) == 2

    asyncio.run(run())


def test_limits_on_what_can_be_asked(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            await house.furnish("one")
            registered, _ = await house.engine.fleet.register("never-seen", [], "1")
            wrong: list[tuple[jobs_pb2.JobSpec, type[Exception], str]] = [
                (request(devices=("jetson",)), NotFound, "no device or label 'jetson'"),
                (request(devices=("never-seen",)), InvalidInput, "has never connected"),
                (request(devices=()), InvalidInput, "no device is named"),
                (request("{name: x, steps: [nonsense: {}]}"), InvalidInput, "unknown pass"),
                (request("{name: original, steps: [activation_pruning: {ratio: 0.5}]}"), InvalidInput, "original"),
                (request(PRUNED, PRUNED.replace("0.5", "0.6")), InvalidInput, "two different recipes"),
                (request(incumbent=common_pb2.ArtifactRef(sha256="0" * 64)), UnsupportedHere, "leave --incumbent out"),
                (jobs_pb2.JobSpec(model="net"), InvalidInput, "kind is unknown"),
                (request(limits=jobs_pb2.Limits(max_drop_points=-1)), InvalidInput, "cannot be negative"),
                (request(limits=jobs_pb2.Limits(max_drop_percent=math.nan)), InvalidInput, "cannot be negative"),
                (request(limits=jobs_pb2.Limits(p95_ms=0)), InvalidInput, "p95_ms 0 is no limit"),
                (request(limits=jobs_pb2.Limits(max_size_bytes=-5)), InvalidInput, "max_size_bytes -5 is no limit"),
                (request(objective=99), InvalidInput, "what to minimize is unknown"),
                (request(seed=-1), InvalidInput, "the seed -1 is negative"),
                (request(sustained_ms=5_000), InvalidInput, "give --sustained from 10s to 30m"),
                (jobs_pb2.JobSpec(kind=1, model="nett"), NotFound, "did you mean 'net'"),
            ]
            for spec, kind, words in wrong:
                with pytest.raises(kind, match=words):
                    await house.engine.plan(spec)
                with pytest.raises(kind, match=words):
                    await house.engine.create_job(spec, "")
            assert {c.device for c in (await house.engine.plan(request())).candidates} == {"one"}
            assert await house.engine.jobs() == []
            with pytest.raises(NotFound, match="no job yet"):
                await house.engine.job("last")

    asyncio.run(run())


def test_a_running_job_has_no_report_yet(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            await house.furnish("one")
            await house.engine.create_job(request(), "")
            with pytest.raises(Conflict, match="jobs watch"):
                await house.engine.report_json("last")

    asyncio.run(run())


def test_a_variant_selected_under_one_of_several_conditions_comes_with_its_options(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")

            def answer(lease: work_pb2.TaskLease) -> MeasurementSummary:
                found = measured(lease)
                if lease.measure.threads != 2 or found.latency is None:
                    return found
                p50 = found.latency.p50_ms.model_copy(update={"value": 0.5})
                return found.model_copy(update={"latency": found.latency.model_copy(update={"p50_ms": p50})})

            agent.answer = answer
            house.employ(agent)
            job = await house.ended((await house.engine.create_job(request(PRUNED, threads=[1, 2]), "")).job_id)
            manifest = json.loads((await house.engine.build(job.job_id, "one", "")).manifest_json)
            assert manifest["options"] == {"threads": 2, "batch": 1}
            assert manifest["measured"]["condition"]["threads"] == 2 and manifest["measured"]["selected"]

    asyncio.run(run())


def test_the_build_to_deploy_comes_with_its_manifest(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one", "two"):
                house.employ(agent)
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            answer = await house.engine.build(job.job_id, "one", "")
            manifest = json.loads(answer.manifest_json)
            content = house.store.path(answer.build.artifact.sha256).read_bytes()
            assert manifest["recipe"]["name"].encode() in content
            assert manifest["files"][answer.build.name]["sha256"] == answer.build.artifact.sha256
            assert manifest["options"] == {"threads": 1, "batch": 1}
            assert manifest["device"] == "one"
            assert [tensor["name"] for tensor in manifest["inputs"]] == ["x"]
            variants = [c["variant"] for c in (await house.report(job.job_id))["devices"][0]["candidates"]]
            original = await house.engine.build(job.job_id, "one", variants[0])
            assert json.loads(original.manifest_json)["recipe"]["name"] == "original"
            with pytest.raises(NotFound, match="name one of one, two"):
                await house.engine.build(job.job_id, "", "")
            with pytest.raises(NotFound, match="no build of a variant 'ffff"):
                await house.engine.build(job.job_id, "one", "ffff")

    asyncio.run(run())
