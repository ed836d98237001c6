"""Jobs that give devices a part of each split: the same for every device and candidate, made once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select

from fleetfit.proto.v1 import jobs_pb2, work_pb2
from fleetfit.server.engine.ingestion import Ingestion
from fleetfit.server.report.summary import MeasurementSummary
from fleetfit.server.storage.tables import DatasetRow, SubsetRow

from .harness import House, measured, request

pytestmark = pytest.mark.usefixtures("paper_reports")


def test_every_device_gets_the_same_part_of_each_split_and_the_report_says_of_how_many(tmp_path: Path) -> None:
    given: dict[str, set[tuple[str, int]]] = {}

    def answer(lease: work_pb2.TaskLease) -> MeasurementSummary:
        for named in lease.artifacts:
            if named.name == lease.measure.data_artifact_name:
                given.setdefault(lease.measure.split, set()).add((named.artifact.sha256, named.artifact.size_bytes))
        return measured(lease)

    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one", "two"):
                agent.answer = answer
                house.employ(agent)
            job = await house.engine.create_job(request(device_samples=4), "")
            assert (await house.ended(job.job_id)).state == jobs_pb2.JOB_STATE_DONE
            assert {split: len(parts) for split, parts in given.items()} == {"validation": 1, "test": 1}
            columns = select(SubsetRow.sha256, SubsetRow.size_bytes, SubsetRow.count, SubsetRow.rows_sha256)
            rows = await house.database.read(lambda session: session.execute(columns).all())
            assert {(row.sha256, row.size_bytes) for row in rows} == set().union(*given.values())
            assert {row.count for row in rows} == {4}
            assert all(house.store.has(row.rows_sha256) for row in rows)
            report = await house.report(job.job_id)
            candidate = report["devices"][0]["candidates"][0]
            assert candidate["metric"]["of"] == candidate["test_metric"]["of"] == 10
            assert "metrics are over 10 of 10 samples, as --device-samples says" in candidate["notes"]

            # Another job on as many samples makes nothing anew; one on others does.
            again = await house.engine.create_job(request(device_samples=4), "")
            await house.ended(again.job_id)
            assert {split: len(parts) for split, parts in given.items()} == {"validation": 1, "test": 1}
            fewer = await house.engine.create_job(request(device_samples=3), "")
            await house.ended(fewer.job_id)
            assert {split: len(parts) for split, parts in given.items()} == {"validation": 2, "test": 2}

    asyncio.run(run())


@pytest.mark.parametrize("samples", [0, 10, 500])
def test_a_split_that_is_small_enough_is_given_whole(tmp_path: Path, samples: int) -> None:
    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            job = await house.engine.create_job(request(device_samples=samples), "")
            assert (await house.ended(job.job_id)).state == jobs_pb2.JOB_STATE_DONE
            assert await house.database.read(lambda session: list(session.scalars(select(SubsetRow)))) == []
            report = await house.report(job.job_id)
            assert report["devices"][0]["candidates"][0]["metric"]["of"] is None

    asyncio.run(run())


def test_a_split_that_is_lost_fails_the_job_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(self: Ingestion, module: str, source: Path, *more: str) -> str:
        return '{"refused": "the split cannot be read; push the data again"}'

    monkeypatch.setattr(Ingestion, "_child", refused)

    async def run() -> None:
        async with House(tmp_path) as house:
            for agent in await house.furnish("one"):
                house.employ(agent)
            job = await house.ended((await house.engine.create_job(request(device_samples=4), "")).job_id)
            assert job.state == jobs_pb2.JOB_STATE_FAILED
            assert job.reason.endswith("the split cannot be read; push the data again")
            assert await house.database.read(lambda session: session.scalars(select(DatasetRow)).first()) is not None

    asyncio.run(run())
