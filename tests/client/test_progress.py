from __future__ import annotations

import subprocess
import sys

import pytest

from fleetfit.client import progress
from fleetfit.client.following import _News
from fleetfit.client.progress import Follower
from fleetfit.proto.v1 import jobs_pb2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_is_over_quickly_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Follower() as told:
        for fraction in (0.0, 0.5, 1.0):
            told("sending net.pt2", fraction)
    assert capsys.readouterr().err == ""


def test_longer_work_says_how_far_it_is_and_how_long_it_will_take(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Follower() as told:
        for fraction in (0.0, 0.1, 0.2, 0.3, 0.4):
            told("sending net.pt2", fraction)
            clock[0] += 5
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["sending net.pt2: 10%, 45 s left", "sending net.pt2: 30%, 35 s left"], "a line every ten seconds"


def test_the_servers_own_estimate_is_preferred(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Follower() as told:
        told("measuring", 0.5, 300)
        clock[0] += 2
        told("measuring", 0.5, 300)
    assert capsys.readouterr().err == "measuring: 50%, 5 min left\n"


def test_work_of_unknown_length_is_told_of_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Follower() as told:
        told("exporting net:make", None)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "exporting net:make\n")


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Follower(quiet=True) as told:
        told("exporting", None)
        told.note("a note")
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_is_drawn_and_taken_away() -> None:
    code = (
        "import pty, sys\n"
        "script = 'from fleetfit.client.progress import Follower; import time\\n'\n"
        'script += \'with Follower() as told:\\n told("working [x]", None); time.sleep(0.3); told.note("a note")\'\n'
        "sys.exit(pty.spawn([sys.executable, '-c', script]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
    )
    assert "working [x]" in done.stdout and "a note" in done.stdout
    assert "\x1b[2K" in done.stdout, "the bar's line is cleared at the end"


def test_news_are_told_once_for_each_candidate_and_condition() -> None:
    def job(*states: str) -> jobs_pb2.Job:
        return jobs_pb2.Job(
            candidates=[
                jobs_pb2.CandidateStatus(
                    device="pi", recipe="pruned", threads=n, batch=1, state=state, detail="why" * (state == "failed")
                )
                for n, state in enumerate(states, 1)
            ]
        )

    news = _News()
    assert news.of(job("waiting", "measuring")) == []
    assert news.of(job("measured", "measuring")) == ["pi  pruned 1 thr  measured"]
    assert news.of(job("measured", "failed")) == ["pi  pruned 2 thr  failed: why"]
    assert news.of(job("measured", "failed")) == []
