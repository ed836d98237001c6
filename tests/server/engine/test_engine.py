from __future__ import annotations

import asyncio
import errno
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import CompressFacts, TaskError
from fleetfit.core.errors import Conflict, ExhaustedResource, InvalidInput, NotFound, UnsupportedHere
from fleetfit.proto.v1 import common_pb2, jobs_pb2, models_pb2, work_pb2
from fleetfit.server.engine import compressing, engine
from fleetfit.server.engine.engine import Settings
from fleetfit.server.engine.ingestion import Ingestion
from fleetfit.server.report.summary import MeasurementSummary
from fleetfit.server.storage.tables import CandidateRow, DeviceRow, TaskRow, VariantRow

from .harness import (
    ALL_RECIPES,
    CUDA,
    PRUNED,
    TRAINED,
    House,
    PaperAgent,
    PaperExecutor,
    measured,
    outcome,
    paper_child,
    request,
)

DONE, FAILED, CANCELLED = jobs_pb2.JOB_STATE_DONE, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED


@pytest.fixture(autouse=True)
def paper_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ingestion, "_child", paper_child)


def states(job: jobs_pb2.Job) -> dict[str, str]:
    return {f"{c.device} {c.recipe}": c.state for c in job.candidates}


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


def test_jobs_that_cannot_be_advanced_do_not_hold_the_others_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            broken: set[str] = set()

            def advance(session: Any, job: Any) -> Any:
                if job.id in broken:
                    raise ZeroDivisionError
                return real(session, job)

            real = engine.advance
            monkeypatch.setattr(engine, "advance", advance)
            broken.update([(await house.engine.create_job(request(PRUNED), "")).job_id for _ in range(4)])
            sound = await house.engine.create_job(request(PRUNED), "")
            house.employ(agent)
            assert (await house.ended(sound.job_id)).state == DONE

    asyncio.run(run())


def test_a_job_that_can_never_be_advanced_fails_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.employ(agent)
            real = engine.build_report

            def broken(facts: Any) -> Any:
                raise ZeroDivisionError

            monkeypatch.setattr(engine, "build_report", broken)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == FAILED
            assert "a bug of the server's" in job.reason and "resume the job" in job.reason
            monkeypatch.setattr(engine, "build_report", real)
            await house.engine.resume(job.job_id)
            assert (await house.ended(job.job_id)).state == DONE

    asyncio.run(run())


def test_a_killed_child_is_tried_again_and_not_for_ever(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.kills.update({"pruned": 2, "trained": 99})
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert job.state == DONE
            assert states(job)["one pruned"] == "measured"
            assert states(job)["one trained"] == "failed"
            assert house.executor.runs["trained"] == 3
            detail = next(c.detail for c in job.candidates if c.recipe == "trained")
            assert "killed 3 times" in detail
            assert "resume" in detail
            # Asked again with the cause gone, only what failed is made and measured.
            house.executor.kills.clear()
            await house.engine.resume(job.job_id)
            again = await house.ended(job.job_id)
            assert set(states(again).values()) == {"measured"}
            assert house.executor.runs["pruned"] == 3
            assert set((await house.measurements()).values()) == {1}

    asyncio.run(run())


def test_a_bug_while_compressing_fails_the_candidate_and_nothing_waits_for_ever(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.raises["pruned"] = ZeroDivisionError()
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert states(job)["one pruned"] == "failed"
            assert "a bug of the server's" in next(c.detail for c in job.candidates if c.recipe == "pruned")
            assert states(job)["one trained"] == "measured"

    asyncio.run(run())


def test_an_end_that_cannot_be_written_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            real, full = compressing._end, 2

            def end(*given: Any) -> None:
                nonlocal full
                full -= 1
                if full >= 0:
                    raise ExhaustedResource("the server's disk is full")
                real(*given)

            monkeypatch.setattr(compressing, "_end", end)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert set(states(job).values()) == {"measured"}

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


def test_what_another_device_trained_bears_no_name(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path, settings=Settings(method="quick", tick_s=0.05, cuda=CUDA)) as house:
            house.employ((await house.furnish("one"))[0])
            house.executor.cuda = CUDA.model_copy(update={"driver": "580.1"})
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert {c.recipe for c in job.candidates if c.state == "failed"} == {"trained", "original-retrained"}
            (detail,) = {c.detail for c in job.candidates if c.recipe == "trained"}
            assert "driver 580.1" in detail and CUDA.driver in detail and "restart the server" in detail

    asyncio.run(run())


@pytest.mark.parametrize("name", ["original", "trained"])
def test_a_recipe_that_fails_is_a_failed_candidate(tmp_path: Path, name: str) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.errors[name] = TaskError(code="INVALID_RECIPE", message="the layer would be empty")
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert job.state == DONE
            failed = {c.recipe: c.detail for c in job.candidates if c.state == "failed"}
            assert "the layer would be empty" in failed[name]
            assert set(failed) == (set(ALL_RECIPES) if name == "original" else {name})
            assert house.executor.runs[name] == 1

    asyncio.run(run())


def test_a_full_disk_fails_cleanly_and_the_job_can_be_resumed(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            house.executor.raises["pruned"] = OSError(errno.ENOSPC, "No space left on device")
            job = await house.ended((await house.engine.create_job(request(), "")).job_id)
            assert states(job)["one pruned"] == "failed"
            assert "No space left on device" in next(c.detail for c in job.candidates if c.recipe == "pruned")
            house.executor.raises.clear()
            await house.engine.resume("last")
            assert states(await house.ended(job.job_id))["one pruned"] == "measured"
            with pytest.raises(Conflict, match="nothing to resume"):
                await house.engine.resume("last")

    asyncio.run(run())


def test_a_build_the_device_cannot_load(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")

            def answer(lease: work_pb2.TaskLease) -> MeasurementSummary:
                if lease.measure.candidate.build_id == lease.measure.baseline.build_id or lease.measure.metric_only:
                    return measured(lease)
                return MeasurementSummary(status="out_of_memory", message="")

            agent.answer = answer
            house.employ(agent)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == DONE
            assert states(job) == {"one original": "measured", "one pruned": "failed"}
            assert "out of memory" in next(c.detail for c in job.candidates if c.state == "failed")
            report = await house.report(job.job_id)
            assert report["devices"][0]["selected"] is None
            with pytest.raises(Conflict, match="nothing was selected"):
                await house.engine.build("last", "one", "")

    asyncio.run(run())


def test_a_result_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.employ(agent)

            async def nonsense(self: Ingestion, module: str, source: Path) -> str:
                return "{" if module == "analyse" else await paper_child(self, module, source)

            monkeypatch.setattr(Ingestion, "_child", nonsense)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == DONE
            assert set(states(job).values()) == {"failed"}
            assert "cannot be read" in job.candidates[0].detail

    asyncio.run(run())


def test_a_result_that_is_gone_fails_its_candidate_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            real = house.engine.leases.report

            def is_recipe(session: Session, task_id: str) -> bool:
                task = session.get_one(TaskRow, task_id)
                return session.get_one(CandidateRow, task.candidate_id).role == "recipe"

            async def report(device_id: str, taken: work_pb2.ReportTaskRequest) -> bool:
                # Asked for before: afterwards every wait gives the engine time to read the result.
                recipe = await house.database.read(lambda session: is_recipe(session, taken.task_id))
                first = await real(device_id, taken)
                if recipe:
                    house.store.path(taken.result.sha256).unlink()
                return first

            house.engine.leases.report = report  # type: ignore[method-assign]
            house.employ(agent)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert sorted(states(job).values()) == ["failed", "measured"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), NotFound("it is gone"), ZeroDivisionError()]
)
def test_what_cannot_be_checked_is_refused_and_nothing_waits_behind_it(tmp_path: Path, error: Exception) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            await house.furnish()
            model = await house.upload(b"another model")
            house.executor.raises["intake_model"] = error
            said = [message async for message in house.engine.push_model("other", model.sha256, "pt2")]
            assert said[-1].model.state == models_pb2.INTAKE_STATE_REFUSED
            assert said[-1].model.refusal
            house.executor.raises.clear()
            said = [message async for message in house.engine.push_model("other", model.sha256, "pt2")]
            assert said[-1].model.state == models_pb2.INTAKE_STATE_ACCEPTED

    asyncio.run(run())


def test_a_device_that_goes_away_is_waited_for_and_named(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            one, two = await house.furnish("one", "two")
            house.employ(one)
            job = await house.engine.create_job(request(PRUNED), "")
            async with asyncio.timeout(10):
                async for message in house.engine.watch(job.job_id):
                    done = [s for name, s in states(message).items() if name.startswith("one")]
                    if set(done) == {"measured"} and "waiting for two" in message.progress.activity:
                        break
            assert message.state == jobs_pb2.JOB_STATE_RUNNING
            assert "two, which is offline" in message.progress.activity
            await house.engine.fleet.set_paused("two", True)
            assert "two, which is paused" in (await house.engine.job(job.job_id)).progress.activity
            await house.engine.fleet.set_paused("two", False)
            house.employ(two)
            assert set(states(await house.ended(job.job_id)).values()) == {"measured"}

    asyncio.run(run())


def test_a_device_that_stays_away_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path, settings=Settings(method="quick", tick_s=0.05, device_wait_s=0.5)) as house:
            one, _ = await house.furnish("one", "two")
            house.employ(one)
            job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
            assert job.state == DONE
            assert states(job) == {
                "one original": "measured",
                "one pruned": "measured",
                "two original": "failed",
                "two pruned": "failed",
            }
            assert "two was away" in job.candidates[2].detail
            assert "resume" in job.candidates[2].detail

    asyncio.run(run())


def test_cancelling_and_going_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.executor.gate.clear()
            job = await house.engine.create_job(request(), "")
            while not house.executor.running:
                await asyncio.sleep(0.01)
            cancelled = await house.engine.cancel(job.job_id)
            assert cancelled.state == CANCELLED
            async with asyncio.timeout(5):
                while house.executor.running:
                    await asyncio.sleep(0.01)
            with pytest.raises(Conflict, match="cancelled already"):
                await house.engine.cancel("last")
            house.executor.gate.set()
            house.employ(agent)
            await asyncio.sleep(0.3)
            assert not agent.measured
            report = await house.report(job.job_id)
            assert all(c["status"] == "skipped" for c in report["devices"][0]["candidates"])
            await house.engine.resume(job.job_id)
            assert set(states(await house.ended(job.job_id)).values()) == {"measured"}

    asyncio.run(run())


def test_a_cancelled_jobs_child_lives_on_for_another_job(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            house.employ(agent)
            house.executor.gate.clear()
            first, second = [await house.engine.create_job(request(), "") for _ in range(2)]
            while not house.executor.running:
                await asyncio.sleep(0.01)
            await house.engine.cancel(first.job_id)
            house.executor.gate.set()
            assert (await house.ended(second.job_id)).state == DONE
            assert house.executor.runs["original"] == 1

    asyncio.run(run())


def test_a_measurement_in_progress_is_told_to_stop(tmp_path: Path) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            (agent,) = await house.furnish("one")
            engine = house.engine
            number, _, _ = await engine.fleet.hello(agent.device_id, work_pb2.HelloRequest(snapshot=agent.snapshot))
            messages = engine.fleet.attend(agent.device_id, number)
            await engine.create_job(request(PRUNED), "")
            async with asyncio.timeout(10):
                while (lease := await engine.lease(agent.device_id, number)) is None:
                    await asyncio.sleep(0.05)
            await engine.cancel("last")
            said = []
            while not messages.empty():
                said.append(messages.get_nowait())
            assert [m.cancel_task.task_id for m in said if m.HasField("cancel_task")] == [lease.task_id]
            renewal = work_pb2.RenewLeaseRequest(session_number=number, task_id=lease.task_id, fence=lease.fence)
            assert (await engine.renew(agent.device_id, renewal)).cancelled
            await engine.fleet.leave(agent.device_id, number)

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


class Dead(Exception):
    """Raised to whatever a dead server would not have done any more."""


async def _life(
    folder: Path, executor: PaperExecutor, agents: list[PaperAgent], kind: str = "", number: int = 0
) -> tuple[Counter[str], bool]:
    """One life, which dies after its write of that number of a kind: nothing after it reaches the database.

    How often each kind was written, and whether it died.
    """
    dead = asyncio.Event()
    house = House(folder, executor=executor)
    real, written = house.database.write, Counter[str]()

    async def write(work: Any) -> Any:
        if dead.is_set():
            raise Dead
        # Where it stands in the code.
        which = f"{work.__qualname__} {work.__code__.co_firstlineno}"
        written[which] += 1
        dies = (which, written[which]) == (kind, number)
        result = await real(work)
        if dies:
            dead.set()
            raise Dead
        return result

    house.database.write = write  # type: ignore[method-assign]
    try:
        await house.engine.start()
    except Dead:
        await house.__aexit__()
        return written, True
    try:
        for agent in agents:
            house.employ(agent)
        ending = asyncio.create_task(house.ended("last"))
        dying = asyncio.create_task(dead.wait())
        await asyncio.wait({ending, dying}, return_when=asyncio.FIRST_COMPLETED)
        for task in (ending, dying):
            task.cancel()
        await asyncio.gather(ending, dying, return_exceptions=True)
    finally:
        await house.__aexit__()
    return written, dead.is_set()


async def _undisturbed(folder: Path) -> Any:
    async with House(folder) as house:
        for agent in await house.furnish("one", "two"):
            house.employ(agent)
        job = await house.ended((await house.engine.create_job(request(PRUNED), "")).job_id)
        return outcome(job, await house.report(job.job_id))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_after_any_write_a_job_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """The server dies after the first and after the last write of each kind, and is started again on what it left."""

    async def run() -> None:
        expected = await _undisturbed(tmp_path / "calm")
        async with House(tmp_path / "begun") as house:
            begun = await house.furnish("one", "two")
            house.executor.gate.clear()
            await house.engine.create_job(request(PRUNED), "")

        def again(name: str) -> tuple[Path, PaperExecutor, list[PaperAgent]]:
            folder = shutil.copytree(tmp_path / "begun", tmp_path / name)
            agents = [PaperAgent(agent.device_id, agent.snapshot) for agent in begun]
            return folder, PaperExecutor(folder / "paper"), agents

        kinds, _ = await _life(*again("whole"))
        assert len(kinds) > 7 and kinds.total() > 20, "the job was too short to be disturbed everywhere"
        moments = [(kind, number) for kind, count in kinds.items() for number in sorted({1, count})]
        deaths = 0
        for at, (kind, number) in enumerate(moments):
            folder, executor, agents = again(str(at))
            _, died = await _life(folder, executor, agents, kind, number)
            deaths += died
            async with House(folder, executor=executor) as house:
                for agent in agents:
                    house.employ(agent)
                job = await house.ended("last")
                said = f"killed after write {number} of {kind}"
                assert outcome(job, await house.report("last")) == expected, said
                assert set((await house.measurements()).values()) == {1}, said
                assert all(agent.spool == [] for agent in agents)
            assert max(executor.runs.values()) <= 2
            assert sum(executor.runs.values()) <= 3, "only what was being made when it died is made again"
        # How often some are written depends on time.
        assert deaths >= len(kinds)

    asyncio.run(run())
