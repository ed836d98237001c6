"""Runtimes that crash, hang, eat memory, talk without end or fork: each ends in words, and the agent does the next task."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fleetfit.proto.v1 import measurement_pb2
from fleetfit.server.storage.artifacts import ArtifactStore

from .conftest import Fleet, wait_for
from .moments import WAIT_S
from .refusals import check_log, check_sentence
from .sites import harmful_runtime, impatient_server
from .windows import query

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
# Longer than a process takes to start on a busy machine.
PATIENCE_S = 20
MEMORY_MB = 700
Status = measurement_pb2.MeasurementStatus


@dataclass
class Harmed:
    """A fleet whose device `pi` has the runtime, and the file that says what that does next."""

    fleet: Fleet
    harm: Path

    def bench(self, harm: str) -> tuple[str, str, Status.ValueType]:
        """Measure `net` while the runtime does that: the candidate's state, its reason, and the raw result's status."""
        self.harm.write_text(harm)
        job = self.fleet.run("bench", "net", "--on", "pi", "--json").json["job"]["job_id"]
        over = "SELECT 1 FROM job WHERE id = ? AND state != 'running'"
        wait_for(lambda: query(self.fleet.root / "state", over, job), f"the job with {harm}", WAIT_S)
        (candidate,) = query(self.fleet.root / "state", "SELECT state, reason FROM candidate WHERE job_id = ?", job)
        (task,) = query(self.fleet.root / "state", "SELECT * FROM task WHERE job_id = ?", job)
        assert (task["fence"], task["attempts"]) == (1, 1)
        content = ArtifactStore(self.fleet.root / "state" / "artifacts").path(task["result_sha256"]).read_bytes()
        result = measurement_pb2.MeasurementResult.FromString(gzip.decompress(content))
        return candidate["state"], candidate["reason"], result.status

    def check_nothing_left(self) -> None:
        """No process but the agent, and no file of the task."""
        state = self.fleet.root / "agents" / "pi"
        wait_for(lambda: not any((state / "spool").iterdir()), "the report", WAIT_S)
        assert not any((state / "tasks").iterdir())
        agent = psutil.Process(self.fleet.processes["pi"].pid)
        assert agent.children(recursive=True) == []
        # Orphans too.
        assert [p.pid for p in self.fleet.relatives() if "HARM" in p.environ()] == [agent.pid]


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Harmed]:
    root = tmp_path_factory.mktemp("harmed")
    harm = root / "harm"
    harm.write_text("nothing")
    sites = {"server": impatient_server(root / "impatient", PATIENCE_S), "pi": harmful_runtime(root / "site")}
    fleet = Fleet(root, ("--method", "quick"))
    fleet.surroundings = {name: {"PYTHONPATH": str(site)} for name, site in sites.items()}
    fleet.surroundings["pi"]["HARM"] = str(harm)
    try:
        fleet.start_server()
        fleet.start_agent("pi", 1, "--memory-mb", str(MEMORY_MB))
        fleet.run("models", "push", str(files / "net.onnx"))
        yield Harmed(fleet, harm)
        # One agent, in one life and one session, did all of it.
        assert fleet.processes["pi"].poll() is None and fleet.log("pi").count("connected to") == 1
        for name in ("pi", "server"):
            check_log(fleet, name)
    finally:
        fleet.close()


def test_a_runtime_that_crashes_when_it_is_asked_is_shown_with_its_reason_and_the_agent_lives(harmed: Harmed) -> None:
    shown = harmed.fleet.run("devices", "show", "pi", "--json").json["device"]["snapshot"]["runtimes"]
    by_name = {one["name"]: one for one in shown}
    assert by_name["onnxruntime"]["available"] and not by_name["segfaulting"].get("available")
    assert by_name["segfaulting"]["reason"] == (
        "asking whether it can be used crashed its process (SIGSEGV); install that runtime again, or remove it"
    )
    assert "looking at this device ended as crashed" in harmed.fleet.log("pi")


@pytest.mark.parametrize(
    ("harm", "status", "says"),
    [
        (
            "segfault",
            Status.MEASUREMENT_STATUS_CRASHED,
            "the runtime crashed on the build; try another recipe or runtime",
        ),
        (
            "leave",
            Status.MEASUREMENT_STATUS_CRASHED,
            "the trial ended in an unexpected error (exit code 7, and not a word)",
        ),
        (
            "leave_content",
            Status.MEASUREMENT_STATUS_CRASHED,
            "the trial ended in an unexpected error (exit code 0, and not a word)",
        ),
        (
            "complain",
            Status.MEASUREMENT_STATUS_CRASHED,
            "the trial ended in an unexpected error (RuntimeError: no such kernel in 3 lines of text)",
        ),
        (
            "eat",
            Status.MEASUREMENT_STATUS_OUT_OF_MEMORY,
            "the build needs more memory than the device has free; try a smaller build or batch",
        ),
        (
            "talk_for_ever",
            Status.MEASUREMENT_STATUS_TIMED_OUT,
            "the build did not finish within the time a trial may take; try a smaller build or batch",
        ),
    ],
    ids=("segfault", "leave", "leave_content", "complain", "eat", "talk_for_ever"),
)
def test_a_runtime_that_does_harm_fails_the_build_in_words_and_leaves_nothing_behind(
    harmed: Harmed, harm: str, status: Status.ValueType, says: str
) -> None:
    state, reason, reported = harmed.bench(harm)
    assert (state, reported) == ("failed", status), reason
    check_sentence(reason)
    assert reason == says
    harmed.check_nothing_left()


def test_a_runtime_whose_forks_stay_is_measured_and_they_are_ended(harmed: Harmed) -> None:
    assert harmed.bench("stay") == ("measured", "", Status.MEASUREMENT_STATUS_MEASURED)
    harmed.check_nothing_left()


def test_after_all_that_the_agent_measures_as_ever(harmed: Harmed) -> None:
    assert harmed.bench("nothing") == ("measured", "", Status.MEASUREMENT_STATUS_MEASURED)
    harmed.check_nothing_left()
