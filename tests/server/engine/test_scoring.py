"""Outputs on their way to scorers and scores on their way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.core.errors import InvalidInput, LeaseLost, NotFound
from fleetfit.proto.v1 import common_pb2, jobs_pb2, scoring_pb2
from fleetfit.server.engine.jobs import resume_job
from fleetfit.server.engine.scoring import Scoring, keep_scores, next_scores, scores_of_job
from fleetfit.server.report import scored
from fleetfit.server.report.summary import Figure, MeasurementSummary, MetricSummary, OutputsSummary
from fleetfit.server.storage.artifacts import ArtifactStore
from fleetfit.server.storage.tables import (
    BuildRow,
    CandidateRow,
    ConditionRow,
    JobRow,
    MeasurementRow,
    ScoringRow,
    TaskRow,
)

from .conftest import digest

LEASE_MS = 1000


class Clock:
    now_ms = 5_000

    def __call__(self) -> int:
        return self.now_ms


class Desk:
    """A job of two measurements that wait for `user:f`, and the calls of a scorer."""

    def __init__(self, world: Any, store: ArtifactStore) -> None:
        self.world, self.clock, self.changed = world, Clock(), []  # type: ignore[var-annotated]
        self.scoring = Scoring(
            world.database, store, lease_ms=LEASE_MS, clock_ms=self.clock, changed=self.changed.append
        )
        spec = jobs_pb2.JobSpec(
            kind=jobs_pb2.JOB_KIND_COMPRESS, model="net", dataset="flowers", devices=["pi"], metric="user:f"
        )
        world.change(JobRow, world.job, spec=spec.SerializeToString())

        def write(session: Session) -> None:
            session.add(ConditionRow(id="condition", content={}))
            session.flush()
            for number, task_id in enumerate(world.tasks):
                task = session.get_one(TaskRow, task_id)
                task.state = "scoring"
                session.get_one(CandidateRow, task.candidate_id).state = "scoring"
                outputs = OutputsSummary(sha256=digest(f"outputs {number}"), size_bytes=10, split="validation", n=20)
                session.add(
                    MeasurementRow(
                        id=f"measurement-{number}", task_id=task_id, candidate_id=task.candidate_id,
                        build_id=session.scalars(select(BuildRow.id)).first() or "", device_id=world.device,
                        snapshot_id="snapshot", condition_id="condition", split="validation", raw_sha256=digest("raw"),
                        summary=MeasurementSummary(status="measured", outputs=outputs).model_dump(), agent_version="1",
                        method_version="1", created_ms=1,
                    )
                )  # fmt: skip

        world.database.write_now(write)

    def register(self, source: str = "source", owner: str = "local", **more: Any) -> str:
        wanted = scoring_pb2.RegisterScorerRequest(name="f", source_sha256=digest(source), **more)
        return asyncio.run(self.scoring.register(owner, wanted))

    def lease(self, scorer: str, owner: str = "local") -> scoring_pb2.LeaseScoringResponse:
        return asyncio.run(self.scoring.lease(owner, scorer))

    def report(self, lease: scoring_pb2.ScoringLease, sha256: str = "", error: str = "", owner: str = "local") -> bool:
        wanted = scoring_pb2.ReportScoringRequest(scoring_id=lease.scoring_id, fence=lease.fence, error=error)
        if sha256:
            wanted.scores.CopyFrom(common_pb2.ArtifactRef(sha256=sha256))
        return asyncio.run(self.scoring.report(owner, wanted))

    def settle(self) -> None:
        """What the ingestion does with reported scores."""
        reported = self.world.database.read_now(next_scores)
        assert reported is not None and reported.count == 20
        figure = MetricSummary(name="user:f", split="validation", figure=Figure(value=0.5, low=0.4, high=0.6), n=20)
        self.world.database.write_now(lambda s: keep_scores(s, reported.id, {"metric": figure.model_dump()}))

    def candidates(self) -> list[tuple[str, str]]:
        query = select(CandidateRow.state, CandidateRow.reason).order_by(CandidateRow.position)
        return list(self.world.database.read_now(lambda s: [tuple(row) for row in s.execute(query)]))

    def missing(self) -> str:
        def look(session: Session) -> str:
            return self.scoring.missing(session, session.get_one(JobRow, self.world.job))

        return str(self.world.database.read_now(look))


@pytest.fixture
def desk(world: Any, store: ArtifactStore) -> Desk:
    return Desk(world, store)


def test_scores_of_all_outputs_end_the_waiting(desk: Desk, keep: Callable[[bytes], str]) -> None:
    assert desk.missing() == "fleetfit scorer MODULE:FUNCTION --name f"
    scorer = desk.register()
    assert desk.missing() == ""
    for number in range(2):
        lease = desk.lease(scorer).lease
        assert (lease.outputs.sha256, lease.data.sha256) == (digest(f"outputs {number}"), digest("validation"))
        assert (lease.count, lease.device, lease.fence) == (20, "pi", 1)
        sent = keep(f"scores {number}".encode())
        assert desk.report(lease, sent) and not desk.report(lease, sent)
        desk.settle()
    answer = desk.lease(scorer)
    assert not answer.HasField("lease") and answer.waiting_jobs == 1
    assert desk.candidates() == [("measured", ""), ("measured", "")]
    found = desk.world.database.read_now(
        lambda s: scores_of_job(s, s.get_one(JobRow, desk.world.job), desk.world.device, "validation")
    )
    assert len(set(found.values())) == 2
    desk.clock.now_ms += 60_000
    assert desk.missing() != ""


def test_a_lapsed_lease_is_another_s_and_its_late_report_is_refused(desk: Desk, keep: Callable[[bytes], str]) -> None:
    scorer = desk.register()
    first = desk.lease(scorer).lease
    desk.clock.now_ms += LEASE_MS + 1
    asyncio.run(desk.scoring.expire())
    second = desk.lease(scorer).lease
    assert (second.scoring_id, second.fence) == (first.scoring_id, 2)
    with pytest.raises(LeaseLost, match="leased again since"):
        desk.report(first, keep(b"late"))
    with pytest.raises(LeaseLost):
        asyncio.run(desk.scoring.renew("local", scoring_pb2.RenewScoringRequest(scoring_id=first.scoring_id, fence=1)))
    assert desk.report(second, keep(b"in time"))


def test_what_is_lost_each_time_is_given_up(desk: Desk) -> None:
    scorer = desk.register()
    for _ in range(5):
        desk.lease(scorer)
        desk.clock.now_ms += LEASE_MS + 1
        asyncio.run(desk.scoring.expire())
    assert "the scorer was lost 5 times" in desk.candidates()[0][1]
    assert desk.changed == [desk.world.job]


def test_a_scorer_has_only_its_owner_s_jobs(desk: Desk, keep: Callable[[bytes], str]) -> None:
    mine = desk.register()
    theirs = desk.register(owner="remote")
    answer = desk.lease(theirs, "remote")
    assert not answer.HasField("lease") and answer.waiting_jobs == 0
    with pytest.raises(NotFound, match="not registered"):
        desk.lease(mine, "remote")
    lease = desk.lease(mine).lease
    with pytest.raises(NotFound, match="drop it"):
        desk.report(lease, keep(b"forged"), owner="remote")


@pytest.mark.parametrize("changed", [{"source": "another"}, {"lower_is_better": True}])
def test_a_metric_that_changed_in_mid_job_is_refused(desk: Desk, changed: dict[str, Any]) -> None:
    desk.lease(desk.register())
    answer = desk.lease(desk.register(**changed))
    assert not answer.HasField("lease") and answer.waiting_jobs == 0
    assert "was begun with another user:f" in answer.refusals[0]


def test_a_metric_that_fails_ends_its_candidate_and_a_corrected_one_scores_all_anew(
    desk: Desk, keep: Callable[[bytes], str]
) -> None:
    scorer = desk.register()
    lease = desk.lease(scorer).lease
    assert desk.report(desk.lease(scorer).lease, keep(b"good"))
    desk.settle()
    assert desk.report(lease, error="ValueError: no (judge.py, line 3)")
    assert desk.candidates()[0] == ("failed", "user:f gave no scores for this build: ValueError: no (judge.py, line 3)")
    assert desk.candidates()[1] == ("measured", "")
    desk.world.change(JobRow, desk.world.job, state="done")
    desk.world.database.write_now(lambda s: resume_job(s, s.get_one(JobRow, desk.world.job)))
    assert desk.candidates() == [("scoring", ""), ("scoring", "")]
    corrected = desk.register("corrected")
    for _ in range(2):
        assert desk.report(desk.lease(corrected).lease, keep(b"corrected"))
        desk.settle()
    assert desk.candidates() == [("measured", ""), ("measured", "")]
    # Measured once: only the scores are new.
    kept = desk.world.database.read_now(lambda s: len(s.scalars(select(MeasurementRow)).all()))
    rows = desk.world.database.read_now(lambda s: len(s.scalars(select(ScoringRow)).all()))
    assert (kept, rows) == (2, 4)


@pytest.mark.parametrize("wrong", [{"name": "a b"}, {"unit": "a,b"}, {"source_sha256": "x"}, {"unit": "a\x1b[1m"}])
def test_a_registration_that_makes_no_sense_is_refused(desk: Desk, wrong: dict[str, str]) -> None:
    request = scoring_pb2.RegisterScorerRequest(name="f", source_sha256=digest("source"))
    for name, value in wrong.items():
        setattr(request, name, value)
    with pytest.raises(InvalidInput):
        asyncio.run(desk.scoring.register("local", request))


def test_files_that_are_no_scores_are_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    for content, said in (
        (np.zeros(3), "3 scores for 4 samples"),
        (np.zeros((4, 1)), "one per sample"),
        (np.zeros(4, np.int64), "no array of float64"),
        (np.array([0, 1, np.nan, 2.0]), "not finite"),
        (np.zeros(9000), "more than one score"),
    ):
        np.save(path, content)
        with pytest.raises(Exception, match=said):
            scored.read_scores(path, 4)
    path.write_bytes(b"no array")
    with pytest.raises(Exception, match="no array of numbers"):
        scored.read_scores(path, 4)
