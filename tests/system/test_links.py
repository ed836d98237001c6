"""Links between an agent and its server that are cut, fall silent, are slow or come and go: nothing is lost or done twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from fleetfit.proto.channels import CHUNK_BYTES

from .badfiles import FEATURES, save_onnx
from .conftest import Fleet, wait_for
from .link import Link
from .moments import WAIT_S, measuring, seen
from .refusals import check_log
from .windows import query

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
# What a cut may cost: the chunk that was on its way, what lay in the buffers of both sockets, and a new handshake.
CUT_BYTES = CHUNK_BYTES + 400_000
# Everything else that the server says in the meantime.
TALK_BYTES = 300_000


@pytest.fixture(scope="module")
def linked(module_fleet: Callable[..., Fleet]) -> Iterator[tuple[Fleet, Link]]:
    """A server and the device `far`, whose agent reaches it over a link."""
    fleet = module_fleet("--method", "quick")
    link = Link(fleet.agent_address)
    try:
        fleet.enrol("far", link.address)
        fleet.start_agent("far")
        yield fleet, link
        for name in ("far", "server"):
            check_log(fleet, name)
        assert fleet.stop("far") == 0
    finally:
        link.close()


def push(fleet: Fleet, name: str, kilobytes: int) -> int:
    """A model of so many bytes that no compression makes smaller; its size."""
    width = kilobytes * 1000 // 4 // FEATURES
    weight = numpy_helper.from_array(
        np.frombuffer(os.urandom(FEATURES * width * 4), np.int32).astype(np.float32), "flat"
    )
    shape = numpy_helper.from_array(np.array([FEATURES, width], np.int64), "shape")
    nodes = [
        helper.make_node("Reshape", ["flat", "shape"], ["w"]),
        helper.make_node("MatMul", ["features", "w"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["output"], axes=[1], keepdims=1),
    ]
    path = save_onnx(fleet.root / f"{name}.onnx", nodes, [weight, shape], 1)
    fleet.run("models", "push", str(path))
    return path.stat().st_size


def begin(fleet: Fleet, model: str) -> str:
    return str(fleet.run("bench", model, "--on", "far", "--json").json["job"]["job_id"])


def ended(fleet: Fleet, job: str) -> dict[str, Any]:
    """The only task of a job, once it is measured; and what holds of every one of them."""
    wait_for(
        lambda: query(fleet.root / "state", "SELECT 1 FROM job WHERE id = ? AND state != 'running'", job), job, WAIT_S
    )
    (task,) = query(fleet.root / "state", "SELECT * FROM task WHERE job_id = ?", job)
    assert task["state"] == "done", query(fleet.root / "state", "SELECT reason FROM candidate WHERE job_id = ?", job)
    kept = query(fleet.root / "state", "SELECT raw_sha256 FROM measurement WHERE task_id = ?", task["id"])
    assert [one["raw_sha256"] for one in kept] == [task["result_sha256"]]
    folder = fleet.root / "agents" / "far"
    left = (folder / "spool", folder / "tasks")
    wait_for(lambda: not any([*one.iterdir()] for one in left), "the agent to have heard of it", WAIT_S)
    assert not list((folder / "cache").glob("*.part"))
    return task


@contextmanager
def carried(link: Link, most: int) -> Iterator[None]:
    """The link carries at most so many bytes down meanwhile."""
    before = link.down_bytes
    yield
    assert link.down_bytes - before <= most, f"{link.down_bytes - before} bytes were carried, {most} are needed at most"


def test_a_link_that_is_cut_in_the_middle_of_a_download_costs_only_what_was_on_its_way(
    linked: tuple[Fleet, Link],
) -> None:
    fleet, link = linked
    size = push(fleet, "cut", 6000)
    link.bytes_per_s = 4e6
    try:
        link.cut_after(2_000_000, for_s=1)
        link.cut_after(2_000_000, for_s=1)
        with carried(link, size + 2 * CUT_BYTES + TALK_BYTES):
            task = ended(fleet, begin(fleet, "cut"))
    finally:
        link.bytes_per_s = None
    assert not link._cut_at
    # The lease outlived both cuts: it is the same task under the same token.
    assert (task["fence"], task["attempts"]) == (1, 1)


def test_a_link_that_falls_silent_in_the_middle_of_a_download_is_given_up_and_another_one_used(
    linked: tuple[Fleet, Link],
) -> None:
    """Nobody closes anything: the keepalive of either side finds it out, after 20 + 10 s."""
    fleet, link = linked
    size = push(fleet, "silent", 3000)
    before = link.connections
    link.silent_after(1_500_000)
    with carried(link, size + CUT_BYTES + TALK_BYTES):
        task = ended(fleet, begin(fleet, "silent"))
    assert link.connections >= before + 2 and (task["fence"], task["attempts"]) == (1, 1)


def test_a_slow_link_carries_a_download_over_one_connection(linked: tuple[Fleet, Link]) -> None:
    """What waits in its buffers for longer than a ping is no sign of death."""
    fleet, link = linked
    size = push(fleet, "slow", 1000)
    before = link.connections
    link.bytes_per_s = 64_000
    try:
        with carried(link, size + TALK_BYTES):
            task = ended(fleet, begin(fleet, "slow"))
    finally:
        link.bytes_per_s = None
    assert link.connections == before + 1 and (task["fence"], task["attempts"]) == (1, 1)


def test_over_a_slow_link_that_comes_and_goes_a_download_gets_on(linked: tuple[Fleet, Link]) -> None:
    fleet, link = linked
    size = push(fleet, "flaps", 1200)
    link.bytes_per_s = 300_000
    try:
        # Never up for as long as a megabyte takes.
        for _ in range(3):
            link.cut_after(CHUNK_BYTES + 150_000, for_s=0.5)
        with carried(link, size + 3 * CUT_BYTES + TALK_BYTES):
            task = ended(fleet, begin(fleet, "flaps"))
    finally:
        link.bytes_per_s = None
    assert not link._cut_at and (task["fence"], task["attempts"]) == (1, 1)


def test_a_result_waits_while_the_link_is_down_and_counts_once_where_the_answer_to_it_was_lost(
    linked: tuple[Fleet, Link],
) -> None:
    fleet, link = linked
    push(fleet, "report", 40)
    job = begin(fleet, "report")
    _, task, fence = seen(fleet, measuring)
    link.cut()
    result = fleet.root / "agents" / "far" / "spool" / f"{task}.{fence}.pb.gz"
    wait_for(result.exists, "the result in the spool", WAIT_S)

    def taken() -> bool:
        return bool(query(fleet.root / "state", "SELECT 1 FROM task WHERE id = ? AND state != 'leased'", task))

    assert not taken()
    link.mend()
    # The server takes the report before it answers, and the agent never hears that answer.
    link.lose_answers(taken)
    wait_for(lambda: link.lost_bytes, "an answer to be lost", WAIT_S)
    assert result.exists()
    link.cut()
    link.mend()
    done = ended(fleet, job)
    assert (done["fence"], done["attempts"]) == (fence, 1)
    assert fleet.log("far").count(f"task {task}: reported") == 1
