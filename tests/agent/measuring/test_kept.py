"""A metric that is interrupted goes on from the batches that are done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetfit.agent.measuring import kept
from fleetfit.agent.measuring.kept import Batch, KeptScores
from fleetfit.agent.spool import DIGESTS, PARTIAL_VARIABLE
from fleetfit.core.digests import sha256_file
from fleetfit.proto.v1 import measurement_pb2

from ...runtimes.builds import WEIGHTS, affine
from .tasks import prepare, solo_here

GENERATOR = np.random.default_rng(3)
_SLOW = """
import os, time
from pathlib import Path
from fleetfit.runtimes.onnxruntime import OnnxRuntime
class Slow(OnnxRuntime):
    name = "slow"
    def load(self, build, *, threads):
        loaded = super().load(build, threads=threads)
        run = loaded.run
        def slowly(feeds):
            time.sleep(0.02)
            with Path(os.environ["SLOW_LOG"]).open("a") as log:
                log.write(f"{len(feeds['x'])}\\n")
            return run(feeds)
        loaded.run = slowly
        return loaded
"""


def batch(count: int, width: int = 0, values: int = 3, strange: int = 0) -> Batch:
    scores = GENERATOR.random((count, width) if width else count, np.float32)
    return Batch(scores, GENERATOR.random((count, values), np.float32), strange)


def same(one: Batch, other: Batch) -> bool:
    alike = np.array_equal(one.scores, other.scores) and np.array_equal(one.judged, other.judged)
    return alike and (one.strange, one.scores.shape, one.judged.shape) == (
        other.strange,
        other.scores.shape,
        other.judged.shape,
    )


@given(
    parts=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 4), st.integers(0, 5)), max_size=5),
    cut=st.integers(0, 200),
    harm=st.one_of(st.none(), st.integers(0, 400)),
)
def test_whatever_a_kill_leaves_whole_batches_come_back(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, int, int, int]], cut: int, harm: int | None
) -> None:
    path = tmp_path_factory.mktemp("kept") / "a.scores"
    batches = [batch(*part) for part in parts]
    records = [kept._record(one) for one in batches]
    content = bytearray(b"".join(records))[: max(sum(map(len, records)) - cut, 0)]
    if harm is not None and harm < len(content):
        content[harm] ^= 0xFF
    path.write_bytes(content)
    found = KeptScores(path)
    assert len(found.batches) <= len(batches)
    whole = sum(1 for at in range(len(records)) if sum(map(len, records[: at + 1])) <= len(content))
    harmed = next(
        (at for at in range(len(records)) if harm is not None and harm < sum(map(len, records[: at + 1]))), 99
    )
    assert len(found.batches) >= min(whole, harmed)
    # What is added then is read back behind what was whole.
    found._written -= 10
    found.add(batches[0] if batches else batch(2))
    again = KeptScores(path)
    assert len(again.batches) == len(found.batches)
    assert all(same(a, b) for a, b in zip(again.batches, found.batches, strict=True))


def lay_out(folder: Path, count: int, runtime: str = "onnxruntime") -> NDArray[np.float32]:
    x = GENERATOR.standard_normal((count, 4)).astype(np.float32)
    targets = GENERATOR.integers(0, 3, count)
    prepare(folder, affine(), data={"x": x, "targets": targets}, metric_only=True, runtime=runtime)
    digests = {path.name: sha256_file(path) for path in (folder / "in").iterdir()}
    (folder / DIGESTS).write_text(json.dumps(digests))
    return np.asarray((x @ WEIGHTS).argmax(axis=1) == targets, dtype=np.float32)


def test_a_metric_whose_process_is_killed_goes_on(tmp_path: Path) -> None:
    site, log, out, partial = (tmp_path / name for name in ("site", "log", "out.pb", "partial"))
    facts = site / "slow-1.0.dist-info"
    facts.mkdir(parents=True)
    (site / "slow_adapter.py").write_text(_SLOW)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[fleetfit.runtimes]\nslow = slow_adapter:Slow\n")
    wanted = lay_out(tmp_path / "first", 6400, "slow")
    environment = os.environ | {PARTIAL_VARIABLE: str(partial), "PYTHONPATH": str(site), "SLOW_LOG": str(log)}

    def begin(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fleetfit.agent.measuring.trials", str(folder), str(out), "solo", "0"]
        return subprocess.Popen(command, env=environment)

    child = begin(tmp_path / "first")
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in partial.glob("*.scores")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    ran = len(log.read_text().splitlines())
    assert 0 < ran < 100 and not out.exists()
    # The task is handed out anew, into another folder.
    (tmp_path / "first").rename(tmp_path / "second")
    assert begin(tmp_path / "second").wait(30) == 0
    metric = measurement_pb2.MeasurementResult.FromString(out.read_bytes()).metric
    assert list(metric.scores) == wanted.tolist()
    assert (metric.count, metric.judged_width, len(metric.judged)) == (6400, 3, 6400 * 3)
    assert 0 < metric.resumed <= 64 * ran
    assert len(log.read_text().splitlines()) - ran == 100 - metric.resumed // 64
    assert list(partial.iterdir()) == [], "a whole metric leaves nothing behind"


@pytest.mark.parametrize("other", ["build", "data", "metric", "threads", "none"])
def test_only_what_scores_depend_on_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    monkeypatch.setenv(PARTIAL_VARIABLE, str(tmp_path / "partial"))
    task = tmp_path / "task"
    wanted = lay_out(task, 150)
    keep = KeptScores.forget
    monkeypatch.setattr(KeptScores, "forget", lambda self: None)
    monkeypatch.setattr(kept, "_EVERY_S", -1)
    solo_here(task)
    monkeypatch.setattr(KeptScores, "forget", keep)
    digests = json.loads((task / DIGESTS).read_text())
    message = measurement_pb2.MeasureTask.FromString((task / "task.pb").read_bytes())
    if other == "build":
        digests["candidate.onnx"] = "0" * 64
    elif other == "data":
        digests["validation.npz"] = "0" * 64
    elif other == "metric":
        message.metric = "macro_f1"
    elif other == "threads":
        message.threads = 2
    (task / DIGESTS).write_text(json.dumps(digests))
    (task / "task.pb").write_bytes(message.SerializeToString())
    metric = solo_here(task).metric
    assert metric.resumed == (150 if other == "none" else 0)
    assert metric.count == 150
    if message.metric == "accuracy":
        assert list(metric.scores) == wanted.tolist()


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARTIAL_VARIABLE, raising=False)
    wanted = lay_out(tmp_path, 70)
    assert list(solo_here(tmp_path).metric.scores) == wanted.tolist()


def test_a_disk_that_takes_nothing_does_not_stop_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv(PARTIAL_VARIABLE, str(blocked))
    wanted = lay_out(tmp_path / "task", 70)
    assert list(solo_here(tmp_path / "task").metric.scores) == wanted.tolist()


def test_leftovers_of_tasks_that_never_came_back_are_dropped(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.scores").write_bytes(b"")
        os.utime(tmp_path / f"{number}.scores", (number, number))
    KeptScores(tmp_path / "mine.scores")
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {f"{number}.scores" for number in range(13, 20)} | {"mine.scores"}
    assert len(left) >= 7
