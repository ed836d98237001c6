"""Following a job until it ends: a bar with the time left, and a line for each candidate that is through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fleetfit.client.client import Client
from fleetfit.client.progress import Follower
from fleetfit.client.tables.words import condition, job_id
from fleetfit.core.errors import FleetfitError, InternalError
from fleetfit.proto.v1 import jobs_pb2

_THROUGH: Final = ("measured", "failed", "skipped")
OnState = Callable[[jobs_pb2.Job], None]


def follow_job(client: Client, job: str, told: Follower, on_state: OnState = lambda job: None) -> jobs_pb2.Job:
    """Show a job's progress until it has ended; the job as it then is. An interrupt says how to find it again."""
    lost = False

    def on_lost(error: FleetfitError) -> None:
        nonlocal lost
        if not lost:
            told.note(f"{error.message} (the job goes on where it was once the server is back)")
        lost = True

    news = _News()
    last: jobs_pb2.Job | None = None
    try:
        for state in client.watch(job, on_lost):
            last, lost = state, False
            for sentence in news.of(state):
                told.note(sentence)
            told(*_progress(state))
            on_state(state)
    except KeyboardInterrupt:
        name = job_id(last.job_id) if last is not None else job
        told.note(f"the job goes on without you; `fleetfit jobs watch {name}` shows it again")
        raise
    if last is None:
        raise InternalError("the server ended the watch without telling the job's state; see its log")
    return last


def _progress(job: jobs_pb2.Job) -> tuple[str, float | None, float | None]:
    progress = job.progress
    remaining = progress.remaining_ms / 1000 if progress.HasField("remaining_ms") else None
    return progress.activity or "waiting", progress.fraction, remaining


class _News:
    """What changed since the last state of a job, in sentences."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str, int, int], str] = {}

    def of(self, job: jobs_pb2.Job) -> list[str]:
        """A sentence for each candidate that is through since the last call."""
        sentences = []
        for one in job.candidates:
            # The same recipe runs on a device once for each number of threads and each batch.
            key = (one.device, one.recipe, one.runtime, one.threads, one.batch)
            if self._known.get(key) != one.state and one.state in _THROUGH:
                detail = f": {one.detail}" if one.detail else ""
                sentences.append(f"{one.device}  {one.recipe}{condition(one, job.candidates)}  {one.state}{detail}")
            self._known[key] = one.state
        return sentences
