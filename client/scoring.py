"""A user's own metric, run here over the outputs that devices returned."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetfit.client.connection import Connection
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import (
    Conflict,
    FleetfitError,
    InvalidInput,
    LeaseLost,
    NotFound,
    Unavailable,
    UnsupportedHere,
)
from fleetfit.proto.v1 import scoring_pb2, scoring_pb2_grpc

_POLL_S: Final = 1.0


class MetricFailed(Exception):
    """A user's metric raised, or gave no scores; the message is for that user."""


@dataclass(frozen=True)
class UserMetric:
    """A function `metric(outputs: dict[str, ndarray], targets: ndarray | None) -> (N,) scores`, and what its values mean."""

    function: Callable[..., Any]
    name: str
    source: Path
    source_sha256: str
    lower_is_better: bool
    unit: str

    def scores(self, outputs: dict[str, Any], targets: Any, count: int) -> Any:
        """One finite float64 for each of `count` samples. Raises MetricFailed."""
        import numpy as np

        try:
            found = self.function(outputs, targets)
        except (Exception, SystemExit) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.source)]
            line = f", line {frames[-1].lineno}" if frames else ""
            raise MetricFailed(f"{type(error).__name__}: {error} ({self.source.name}{line})") from error
        try:
            scores = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise MetricFailed(f"it returned {type(found).__name__}, which is no array of numbers") from error
        if scores.shape != (count,):
            raise MetricFailed(
                f"it returned the shape {scores.shape} where ({count},), one score per sample, is wanted"
            )
        broken = int((~np.isfinite(scores)).sum())
        if broken:
            raise MetricFailed(f"{broken} of its {count} scores are not finite numbers")
        return scores


def load_metric(
    text: str, *, name: str = "", lower_is_better: bool | None = None, unit: str | None = None
) -> UserMetric:
    """The function that `package.module:function` names; what is not given is read from its attributes. Raises InvalidInput."""
    module_name, _, function_name = text.partition(":")
    if not module_name or not function_name:
        raise InvalidInput(f"'{text}' names no function; write package.module:function", field="metric")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        source = Path(inspect.getsourcefile(function) or "").resolve()
    except (Exception, SystemExit) as error:
        raise InvalidInput(
            f"'{text}' cannot be loaded ({type(error).__name__}: {error}); check the name, and the folder it is run in",
            field="metric",
        ) from error
    if not callable(function) or not source.is_file():
        raise InvalidInput(f"'{text}' is no Python function with a source file; name one", field="metric")
    lower = bool(getattr(function, "lower_is_better", False)) if lower_is_better is None else lower_is_better
    said = str(getattr(function, "unit", "")) if unit is None else unit
    return UserMetric(function, name or function_name, source, sha256_file(source), lower, said)


@dataclass(frozen=True)
class Scored:
    """What became of one measurement's outputs: the mean score, or why there is none."""

    job: str
    device: str
    recipe: str
    split: str
    samples: int
    mean: float | None
    error: str = ""


class Scorer:
    """Serves a server with one metric. `told` is called with each sentence that a person should see once."""

    def __init__(self, connection: Connection, metric: UserMetric, told: Callable[[str], None]) -> None:
        try:
            import numpy  # noqa: F401
        except ImportError as error:
            raise UnsupportedHere("a metric needs NumPy; install it with `pip install numpy`") from error
        self._connection = connection
        self._metric = metric
        self._told = told
        self._said: set[str] = set()
        self._stub = connection.stub(scoring_pb2_grpc.ScoringStub)

    def run(self, *, once: bool) -> Iterator[Scored]:
        """Score until interrupted; with `once`, until no running job is judged by the metric any more.

        Raises Conflict where, with `once`, the jobs there are were begun with another version of the metric.
        """
        metric = self._metric
        registration = scoring_pb2.RegisterScorerRequest(
            name=metric.name,
            source_sha256=metric.source_sha256,
            lower_is_better=metric.lower_is_better,
            unit=metric.unit,
        )
        scorer_id = self._connection.call(self._stub.RegisterScorer, registration).scorer_id
        while True:
            try:
                answer = self._connection.call(
                    self._stub.LeaseScoring, scoring_pb2.LeaseScoringRequest(scorer_id=scorer_id)
                )
            except Unavailable as error:
                self._say(f"{error.message}; the scorer goes on once the server is back")
                time.sleep(_POLL_S)
                continue
            if answer.HasField("lease"):
                done = self._carry_out(answer.lease)
                if done is not None:
                    yield done
                continue
            for refusal in answer.refusals:
                if once and not answer.waiting_jobs:
                    raise Conflict(refusal)
                self._say(refusal)
            if once and not answer.waiting_jobs:
                return
            time.sleep(_POLL_S)

    def _carry_out(self, lease: scoring_pb2.ScoringLease) -> Scored | None:
        """Score one measurement and report it. None where it was lost to another scorer meanwhile."""
        report = scoring_pb2.ReportScoringRequest(scoring_id=lease.scoring_id, fence=lease.fence)
        mean = None
        try:
            with tempfile.TemporaryDirectory(prefix="fleetfit-scorer-") as name, self._kept(lease):
                folder = Path(name)
                try:
                    mean = self._score(lease, folder, report)
                except MetricFailed as failure:
                    report.error = str(failure)
                self._connection.call(self._stub.ReportScoring, report)
        except (LeaseLost, NotFound) as error:
            self._told(error.message)
            return None
        except Unavailable as error:
            self._say(f"{error.message}; what it was scoring is leased again")
            time.sleep(_POLL_S)
            return None
        return Scored(lease.job_id, lease.device, lease.recipe, lease.split, lease.count, mean, report.error)

    def _score(self, lease: scoring_pb2.ScoringLease, folder: Path, report: scoring_pb2.ReportScoringRequest) -> float:
        import numpy as np

        self._connection.download(lease.outputs, folder / "outputs.npz", _quiet)
        self._connection.download(lease.data, folder / "data.npz", _quiet)
        try:
            with np.load(folder / "outputs.npz", allow_pickle=False) as arrays:
                outputs = {name: arrays[name] for name in arrays.files}
            with np.load(folder / "data.npz", allow_pickle=False) as arrays:
                targets = arrays["targets"] if "targets" in arrays.files else None
        except (ValueError, OSError) as error:
            raise MetricFailed(f"the device's outputs cannot be read ({error}); update its agent") from error
        scores = self._metric.scores(outputs, targets, lease.count)
        np.save(folder / "scores.npy", scores)
        report.scores.CopyFrom(self._connection.upload(folder / "scores.npy", _quiet))
        return float(scores.mean())

    @contextmanager
    def _kept(self, lease: scoring_pb2.ScoringLease) -> Iterator[None]:
        """Renew the lease while the metric computes, for as long as that takes."""
        over = threading.Event()
        request = scoring_pb2.RenewScoringRequest(scoring_id=lease.scoring_id, fence=lease.fence)

        def renew() -> None:
            while not over.wait(max(lease.lease_ms / 3000, 0.2)):
                try:
                    self._connection.call(self._stub.RenewScoring, request, repeat=False)
                except (LeaseLost, NotFound):
                    return
                except FleetfitError:
                    # The server is away: the report will tell whether the lease outlived that.
                    continue

        thread = threading.Thread(target=renew, name="fleetfit-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._told(sentence)


def _quiet(done: int, total: int) -> None: ...
