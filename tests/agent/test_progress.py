"""How far a task is, as the measuring child writes it and the agent tells it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfit.agent.cache import Cache
from fleetfit.agent.spool import Spool
from fleetfit.agent.work import Worker
from fleetfit.proto.v1 import common_pb2, work_pb2

LEASE = work_pb2.TaskLease(task_id="t1", fence=2)


def _no_channel() -> grpc.aio.Channel:
    raise AssertionError("nothing is to be fetched")


@pytest.fixture(scope="module")
def worker() -> Iterator[Callable[[str], common_pb2.Progress]]:
    """What a worker tells of a child that wrote some text as its progress."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = Worker(folder / "tasks", Cache(folder / "cache", 1), Spool(folder / "spool"), _no_channel)
        (folder / "tasks" / "t1.2").mkdir()

        def told(text: str) -> common_pb2.Progress:
            (folder / "tasks" / "t1.2" / "progress.json").write_text(text)
            return made.progress(LEASE)

        yield told


def test_progress_is_what_the_child_says(worker: Callable[[str], common_pb2.Progress]) -> None:
    said = {"activity": "measuring the build alone", "fraction": 0.25, "remaining_ms": 1500}
    assert worker(json.dumps(said)) == common_pb2.Progress(**said)
    assert not worker('{"activity": "waiting", "fraction": 0}').HasField("remaining_ms")


def test_before_the_child_speaks_the_build_is_being_fetched(tmp_path: Path) -> None:
    made = Worker(tmp_path / "tasks", Cache(tmp_path / "cache", 1), Spool(tmp_path / "spool"), _no_channel)
    assert made.progress(LEASE) == common_pb2.Progress(activity="fetching the build")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["activity", "fraction", "remaining_ms"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=60)
@given(JSON.map(json.dumps) | st.text(max_size=10, alphabet='{}[]":0a'))
def test_no_progress_file_can_bring_the_agent_down(worker: Callable[[str], common_pb2.Progress], text: str) -> None:
    assert isinstance(worker(text), common_pb2.Progress)


@pytest.mark.parametrize("remaining", ["Infinity", "1e400", "99999999999999999999", "NaN"])
def test_a_remaining_time_beyond_all_measure_is_left_out(
    worker: Callable[[str], common_pb2.Progress], remaining: str
) -> None:
    told = worker(f'{{"activity": "waiting", "fraction": 0.5, "remaining_ms": {remaining}}}')
    assert told == common_pb2.Progress(activity="waiting", fraction=0.5)
