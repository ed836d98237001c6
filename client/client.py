"""The Python interface: `fleetfit.connect()` gives a `Client`, with one method for each thing that the command line does."""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from fleetfit.client.connection import Connection
from fleetfit.client.pulling import Download, Pulled, PulledVariant, place_build, place_variant
from fleetfit.client.pushing import PART_NAMES, Source, check_npz, open_source, part_file
from fleetfit.client.requests import Wanted, job_spec, name_for
from fleetfit.client.servers import Credential, find_server
from fleetfit.core.errors import FleetfitError, InternalError, InvalidData, InvalidModel, UnsupportedHere
from fleetfit.proto.v1 import (
    common_pb2,
    devices_pb2,
    devices_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    measurement_pb2,
    models_pb2,
    models_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)

if TYPE_CHECKING:
    from fleetfit.client.verifying import Verification

__all__ = ["Client", "connect"]

# Called with what is being done, how much of it is done (0 to 1, None where unknown), and the seconds left (or None).
OnProgress = Callable[[str, float | None, float | None], None]
_HTML_DEADLINE_S: Final = 180.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def _ignore(activity: str, fraction: float | None, remaining_s: float | None) -> None: ...


def connect(server: str = "", token: str = "") -> Client:
    """A client of a server. Nothing is sent before its first call, but a token's server is looked at to see whether it is the one.

    Args:
        server: `HOST:PORT`. Empty: `FLEETFIT_SERVER`, else the server of this user that runs on this machine.
        token: What the server printed at its first start. Empty: `FLEETFIT_TOKEN`, else the credential that a server on this
            machine has left for its user.

    Raises:
        NotFound: No server is known.
        Unauthenticated: The address has no credential.
        PermissionDenied: The server is not the one that the token is for.
        Unavailable: A token is given and nothing answers.
    """
    return Client(Connection(find_server(server, token)))


class Client:
    """Everything that people ask of a server. Close it when done, or use it in a `with` statement.

    Methods return the protocol's messages and raise FleetfitError with the server's sentence. `on_progress` is called from
    another thread.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._devices = connection.stub(devices_pb2_grpc.DevicesStub)
        self._models = connection.stub(models_pb2_grpc.ModelsStub)
        self._datasets = connection.stub(models_pb2_grpc.DatasetsStub)
        self._jobs = connection.stub(jobs_pb2_grpc.JobsStub)
        self._reports = connection.stub(reports_pb2_grpc.ReportsStub)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """The server's address."""
        return self._connection.address

    @property
    def credential(self) -> Credential:
        """Where the server is and how it is trusted."""
        return self._connection.credential

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # Devices

    def enrolment_token(
        self, name: str = "", labels: Sequence[str] = (), valid_ms: int = 0
    ) -> devices_pb2.CreateEnrolmentTokenResponse:
        """A one-time token for a new device; `valid_ms` 0 is the server's default."""
        request = devices_pb2.CreateEnrolmentTokenRequest(name=name, labels=labels, valid_ms=valid_ms)
        # Not repeated: an answer that was lost would leave a second valid token behind.
        return self._connection.call(self._devices.CreateEnrolmentToken, request, repeat=False)

    def devices(self, labels: Sequence[str] = ()) -> list[devices_pb2.Device]:
        """The fleet, or the devices that bear all of the labels."""
        request = devices_pb2.ListDevicesRequest(labels=labels)
        return list(self._connection.call(self._devices.ListDevices, request).devices)

    def device(self, device: str) -> devices_pb2.Device:
        """One device by its name or id."""
        return self._connection.call(self._devices.GetDevice, devices_pb2.GetDeviceRequest(device=device)).device

    def set_labels(self, device: str, labels: Sequence[str]) -> devices_pb2.Device:
        """Replace a device's labels."""
        request = devices_pb2.SetLabelsRequest(device=device, labels=labels)
        return self._connection.call(self._devices.SetLabels, request).device

    def pause(self, device: str) -> devices_pb2.Device:
        """Give a device no new work."""
        return self._connection.call(self._devices.PauseDevice, devices_pb2.PauseDeviceRequest(device=device)).device

    def resume(self, device: str) -> devices_pb2.Device:
        """Give a paused device work again."""
        return self._connection.call(self._devices.ResumeDevice, devices_pb2.ResumeDeviceRequest(device=device)).device

    def check(self, device: str) -> devices_pb2.Device:
        """Ask for a health check as soon as a device is free."""
        return self._connection.call(self._devices.CheckDevice, devices_pb2.CheckDeviceRequest(device=device)).device

    def clear(self, device: str, *, forget_history: bool = False) -> devices_pb2.Device:
        """Give a device that was set aside work again."""
        request = devices_pb2.ClearDeviceRequest(device=device, forget_history=forget_history)
        return self._connection.call(self._devices.ClearDevice, request, repeat=False).device

    def set_hours(self, device: str, hours: Sequence[str]) -> list[devices_pb2.Device]:
        """When a device, or all that bear a label, may be given work; none is always."""
        request = devices_pb2.SetHoursRequest(device=device, hours=hours)
        return list(self._connection.call(self._devices.SetHours, request).devices)

    # Models and datasets

    def push_model(
        self,
        source: str | Path,
        name: str = "",
        *,
        pre: str | Path | None = None,
        post: str | Path | None = None,
        samples: Path | None = None,
        on_progress: OnProgress = _ignore,
    ) -> models_pb2.Model:
        """Register a model: a `.pt2` or `.onnx` file, or `package.module:factory`, which is exported here first.

        Args:
            source: The file, or the factory.
            name: The model's name; the file's without its ending.
            pre: An ONNX file whose outputs are the model's inputs, by name. It is never compressed, and timed apart.
            post: An ONNX file whose inputs are the model's outputs, or outputs of `pre`, by name.
            samples: An `.npz` whose first rows are the sample inputs where a factory returns the model alone.
            on_progress: Told how far the upload and the check are.

        Raises:
            InvalidModel: The model is refused, or a part does not fit it; the sentence says why.
            UnsupportedHere: The server is older and knows no parts.
        """
        given = {"pre": pre, "post": post}
        parts = {part: part_file(Path(path), part) for part, path in given.items() if path is not None}
        with open_source(str(source), samples, on_progress) as made:
            return self._push_model(made, name_for(name or made.name), parts, on_progress)

    def _push_model(
        self, made: Source, name: str, parts: Mapping[str, Path], on_progress: OnProgress
    ) -> models_pb2.Model:
        artifact = self._connection.upload(made.path, _sending(made.path, on_progress))
        request = models_pb2.PushModelRequest(name=name, artifact=artifact, format=made.format)
        for part, path in parts.items():
            sent = self._connection.upload(path, _sending(path, on_progress))
            (request.pre if part == "pre" else request.post).CopyFrom(sent)
        model: models_pb2.Model | None = None
        for response in self._connection.follow(self._models.PushModel, request):
            _forward(response, on_progress)
            model = response.model if response.HasField("model") else model
        if model is None:
            raise InternalError("the server ended the check without a result; see its log")
        if model.state == models_pb2.INTAKE_STATE_REFUSED:
            raise InvalidModel(model.refusal, field="model")
        if any(request.HasField(part) and not model.HasField(part) for part in PART_NAMES):
            raise UnsupportedHere(
                "the server is older and has left --pre and --post out; update it, or push the model without them"
            )
        return model

    def push_recovered(
        self, source: str | Path, variant: str, *, samples: Path | None = None, on_progress: OnProgress = _ignore
    ) -> models_pb2.Recovered:
        """Put a variant's network that was trained in one's own code back beside the variant; a job takes it by its name.

        Args:
            source: A `.pt2` file, or `package.module:factory`, of the module that `fleetfit.trainable` gave.
            variant: The variant that was pulled: the name that reports show, or its beginning.
            samples: As for `push_model`.
            on_progress: Told how far the upload and the check are.

        Raises:
            InvalidModel: It is another network than the variant's; the sentence names the first place that differs.
            NotFound: There is no such variant.
        """
        with open_source(str(source), samples, on_progress) as made:
            if made.format != "pt2":
                raise InvalidModel(
                    f"{made.path.name} is not a .pt2, which a variant's network is; export the trained module with fleetfit.export",
                    field="model",
                )
            artifact = self._connection.upload(made.path, _sending(made.path, on_progress))
        request = models_pb2.PushRecoveredRequest(variant=variant, artifact=artifact)
        found: models_pb2.Recovered | None = None
        for response in self._connection.follow(self._models.PushRecovered, request):
            _forward(response, on_progress)
            found = response.recovered if response.HasField("recovered") else found
        if found is None:
            raise InternalError("the server ended the check without a result; see its log")
        if found.state == models_pb2.INTAKE_STATE_REFUSED:
            raise InvalidModel(found.refusal, field="model")
        return found

    def models(self) -> list[models_pb2.Model]:
        """All versions of all models, newest first."""
        return list(self._connection.call(self._models.ListModels, models_pb2.ListModelsRequest()).models)

    def model(self, model: str) -> models_pb2.Model:
        """One model: `name` (its newest version), `name:version`, or an id."""
        return self._connection.call(self._models.GetModel, models_pb2.GetModelRequest(model=model)).model

    def push_dataset(
        self,
        source: str | Path,
        name: str = "",
        *,
        model: str = "",
        test: str | Path | None = None,
        metric: str = "",
        seed: int = 0,
        on_progress: OnProgress = _ignore,
    ) -> models_pb2.Dataset:
        """Register arrays: an `.npz`, or a folder of `.npy` files, one for each input of the model, and `targets`.

        Args:
            source: The file or folder.
            name: The dataset's name; the file's without its ending.
            model: The model that the arrays must fit.
            test: A test split of one's own; otherwise it is cut from `source`.
            metric: What to judge by; empty: accuracy for whole-number targets, else the mean absolute error.
            seed: The seed of the split.
            on_progress: Told how far the upload and the check are.

        Raises:
            InvalidData: The arrays are refused; the sentence says why.
        """
        request = models_pb2.PushDatasetRequest(
            name=name_for(name or Path(source).stem), model=model, seed=seed, metric=metric
        )
        with check_npz(Path(source)) as path:
            request.artifact.CopyFrom(self._connection.upload(path, _sending(path, on_progress)))
        if test is not None:
            with check_npz(Path(test)) as path:
                request.test_artifact.CopyFrom(self._connection.upload(path, _sending(path, on_progress)))
        dataset: models_pb2.Dataset | None = None
        for response in self._connection.follow(self._datasets.PushDataset, request):
            _forward(response, on_progress)
            dataset = response.dataset if response.HasField("dataset") else dataset
        if dataset is None:
            raise InternalError("the server ended the check without a result; see its log")
        if dataset.state == models_pb2.INTAKE_STATE_REFUSED:
            raise InvalidData(dataset.refusal, field="data")
        return dataset

    def datasets(self) -> list[models_pb2.Dataset]:
        """All versions of all datasets, newest first."""
        return list(self._connection.call(self._datasets.ListDatasets, models_pb2.ListDatasetsRequest()).datasets)

    def dataset(self, dataset: str) -> models_pb2.Dataset:
        """One dataset: `name` (its newest version), `name:version`, or an id."""
        return self._connection.call(self._datasets.GetDataset, models_pb2.GetDatasetRequest(dataset=dataset)).dataset

    # Jobs

    def plan(self, wanted: Wanted | jobs_pb2.JobSpec) -> jobs_pb2.Plan:
        """What a job would do; nothing is started."""
        return self._connection.call(self._jobs.PlanJob, jobs_pb2.PlanJobRequest(spec=_spec(wanted))).plan

    def start(self, wanted: Wanted | jobs_pb2.JobSpec) -> jobs_pb2.Job:
        """Start a job."""
        # The id makes repeating safe: the server gives the same job again.
        request = jobs_pb2.CreateJobRequest(spec=_spec(wanted), request_id=uuid.uuid4().hex)
        return self._connection.call(self._jobs.CreateJob, request).job

    def compress(self, model: str, **options: Any) -> jobs_pb2.Job:
        """Start a compression job; the options are the fields of `fleetfit.client.requests.Wanted`."""
        return self.start(Wanted(model, **options))

    def bench(self, model: str, **options: Any) -> jobs_pb2.Job:
        """Start a job that measures the model as it is."""
        return self.start(Wanted(model, bench=True, **options))

    def jobs(self, limit: int = 0) -> list[jobs_pb2.Job]:
        """The newest jobs; `limit` 0 is 50."""
        return list(self._connection.call(self._jobs.ListJobs, jobs_pb2.ListJobsRequest(limit=limit)).jobs)

    def job(self, job: str) -> jobs_pb2.Job:
        """One job by its id, the end of its id, or `last`."""
        return self._connection.call(self._jobs.GetJob, jobs_pb2.GetJobRequest(job=job)).job

    def watch(self, job: str, on_lost: Callable[[FleetfitError], None] = lambda error: None) -> Iterator[jobs_pb2.Job]:
        """The job as it is, then after every change, until it has ended; a server that restarts meanwhile is waited for."""
        # `last` must not become another job where the connection is lost.
        job_id = self.job(job).job_id
        request = jobs_pb2.WatchJobRequest(job=job_id)
        for response in self._connection.follow(self._jobs.WatchJob, request, on_lost):
            yield response.job

    def wait(self, job: str) -> jobs_pb2.Job:
        """Wait until a job has ended; the job as it then is."""
        states = deque(self.watch(job), maxlen=1)
        if not states:
            raise InternalError("the server ended the watch without telling the job's state; see its log")
        return states.pop()

    def cancel(self, job: str) -> jobs_pb2.Job:
        """Stop a job; what was done stays done."""
        return self._connection.call(self._jobs.CancelJob, jobs_pb2.CancelJobRequest(job=job), repeat=False).job

    def resume_job(self, job: str) -> jobs_pb2.Job:
        """Go on with a job that was cancelled, or in which something failed."""
        return self._connection.call(self._jobs.ResumeJob, jobs_pb2.ResumeJobRequest(job=job), repeat=False).job

    # Reports

    def report(self, job: str, device: str = "") -> dict[str, Any]:
        """The report of a job that has ended (schema 1), of one device or of all."""
        request = reports_pb2.GetReportRequest(job=job, device=device, format=reports_pb2.REPORT_FORMAT_JSON)
        found: dict[str, Any] = json.loads(self._connection.call(self._reports.GetReport, request).content)
        return found

    def report_html(self, job: str, device: str = "") -> bytes:
        """The report as one self-contained page."""
        request = reports_pb2.GetReportRequest(job=job, device=device, format=reports_pb2.REPORT_FORMAT_HTML)
        return self._connection.call(self._reports.GetReport, request, deadline_s=_HTML_DEADLINE_S).content

    def verify(self, job: str, device: str = "", *, on_progress: OnProgress = _ignore) -> Verification:
        """Fetch the raw samples behind a report, and compute every figure of it again.

        Raises UnsupportedHere where there is no NumPy.
        """
        try:
            from fleetfit.client.verifying import read_raw, verify_report
        except ImportError as error:
            raise UnsupportedHere(
                "computing figures again needs NumPy; install it with pip install numpy", private=str(error)
            ) from error
        download = self._downloader(on_progress)
        with tempfile.TemporaryDirectory(prefix="fleetfit-raw-") as folder:

            def fetch(sha256: str, size_bytes: int, read: Callable[[Path], Any]) -> Any:
                if not _DIGEST.fullmatch(sha256):
                    raise InvalidData("the report names raw samples by something that is no digest; update the client")
                path = Path(folder) / sha256
                download(common_pb2.ArtifactRef(sha256=sha256, size_bytes=size_bytes), path)
                try:
                    return read(path)
                finally:
                    path.unlink()

            def fetch_raw(sha256: str, size_bytes: int) -> measurement_pb2.MeasurementResult:
                raw: measurement_pb2.MeasurementResult = fetch(sha256, size_bytes, read_raw)
                return raw

            return verify_report(self.report(job, device), fetch_raw, fetch)

    def pull(
        self,
        job: str,
        device: str,
        folder: str | Path,
        *,
        variant: str = "",
        runtime: str = "",
        on_progress: OnProgress = _ignore,
    ) -> Pulled:
        """Put the build that was selected for a device into a new folder, with manifest and `run.py`.

        `variant` and `runtime` name another of the report's builds.

        The folder appears whole or not at all, and every digest is checked. Raises AlreadyExists where it is not empty.
        """
        request = reports_pb2.GetBuildRequest(job=job, device=device, variant=variant, runtime=runtime)
        answer = self._connection.call(self._reports.GetBuild, request)
        return place_build(answer, Path(folder), self._downloader(on_progress))

    def pull_trainable(self, variant: str, folder: str | Path, *, on_progress: OnProgress = _ignore) -> PulledVariant:
        """Put a variant's network, before it was quantized, into a new folder for `fleetfit.trainable`, with a `train.py`.

        `variant` is the name that reports show, or its beginning. Raises Conflict where there is nothing to train.
        """
        answer = self._connection.call(self._models.GetVariant, models_pb2.GetVariantRequest(variant=variant))
        return place_variant(answer, Path(folder), self._downloader(on_progress))

    def _downloader(self, on_progress: OnProgress) -> Download:
        def download(artifact: common_pb2.ArtifactRef, path: Path) -> None:
            self._connection.download(artifact, path, _moving(f"fetching {path.name}", on_progress))

        return download


def _spec(wanted: Wanted | jobs_pb2.JobSpec) -> jobs_pb2.JobSpec:
    return job_spec(wanted) if isinstance(wanted, Wanted) else wanted


def _moving(activity: str, on_progress: OnProgress) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        on_progress(activity, done / total if total else 1.0, None)

    return told


def _sending(path: Path, on_progress: OnProgress) -> Callable[[int, int], None]:
    return _moving(f"sending {path.name}", on_progress)


def _forward(
    response: models_pb2.PushModelResponse | models_pb2.PushRecoveredResponse | models_pb2.PushDatasetResponse,
    on_progress: OnProgress,
) -> None:
    if response.HasField("progress"):
        progress = response.progress
        remaining = progress.remaining_ms / 1000 if progress.HasField("remaining_ms") else None
        on_progress(progress.activity or "checking", progress.fraction, remaining)
