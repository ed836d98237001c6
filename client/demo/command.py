"""`fleetfit demo`: train a classifier, compress it for two devices, measure, select, report. All of it is real."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fleetfit.client.commands.jobs import ended_badly, ending
from fleetfit.client.commands.report import table_text, write_whole
from fleetfit.client.demo.claims import MOST_DROP, claims, sentence
from fleetfit.client.demo.fleet import DemoFleet
from fleetfit.client.demo.images import Images, cache_folder, load_images
from fleetfit.client.following import follow_job
from fleetfit.client.output import Output
from fleetfit.client.progress import Follower
from fleetfit.client.requests import Wanted
from fleetfit.client.tables.words import duration, size
from fleetfit.core.errors import Conflict, InternalError, UnsupportedHere

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPES: Final = Path(__file__).parent / "recipes"
# The variant chosen has at most this share of the original's bytes.
_SIZE_SHARE: Final = 0.15
# Enough for a training that beats guessing.
_QUICK_SAMPLES: Final = 2000
_QUICK_RECIPES: Final = 1
_MARK: Final = "fleetfit-demo"


def demo(
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the report and all files of the demo.")
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training and of everything random.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs that the classifier is trained for.")] = 8,
    quick: Annotated[
        bool, typer.Option("--quick", help="A trial of the machinery in a minute or two; its figures say little.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train anew instead of taking the cached classifier.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on the last line.")] = False,
) -> None:
    """Do the whole job on this machine: a server, two agents, real data, measured results."""
    output = Output(as_json)
    folder = out.absolute()
    _clear(folder)
    with Follower() as told:
        images = load_images(told.note)
        if quick:
            images = images.head(_QUICK_SAMPLES)
        data, test = _write_data(images, folder)
        archive = _classifier(images, folder, seed, epochs, fresh, told)
    output.say(f"data: {images.source}; classifier: {archive.name}, {size(archive.stat().st_size)}")
    with DemoFleet(folder / "fleet") as fleet, Follower() as told:
        told("starting a server and two agents", None)
        with fleet.start_server("quick" if quick else "standard") as client:
            fleet.start_agent(client, "one-thread", 1)
            fleet.start_agent(client, "two-threads", 2)
            model = client.push_model(archive, "classifier", on_progress=told)
            client.push_dataset(data, "fashion", model=model.name, test=test, seed=seed, on_progress=told)
            job = client.start(
                Wanted(
                    model.name,
                    data="fashion",
                    on=["one-thread", "two-threads"],
                    recipes=sorted(RECIPES.glob("*.yaml"))[-_QUICK_RECIPES if quick else 0 :],
                    max_drop=str(MOST_DROP),
                    max_size_mb=_SIZE_SHARE * model.parameters * 4 / 1e6,
                    seed=seed,
                )
            )
            job = follow_job(client, job.job_id, told)
            if ended_badly(job):
                raise InternalError(f"{ending(job)}; the server's log is {folder / 'fleet' / 'server.log'}")
            report = client.report(job.job_id)
            page = client.report_html(job.job_id)
            pulled = [client.pull(job.job_id, d["device"], folder / d["device"]) for d in _chosen(report)]
    write_whole(folder / "report.json", (json.dumps(report) + "\n").encode())
    write_whole(folder / "report.html", page)
    took = (job.finished_unix_ms - job.created_unix_ms) / 1000
    output.say(table_text(report).rstrip("\n"))
    output.say("\nWhat this shows, measured by the agents:")
    for claim in claims(report):
        output.say(f"  {'yes' if claim.holds else 'NO '}  {sentence(claim)}")
    output.say(f"\nThe job took {duration(took)}. The same as a page with pictures: {folder / 'report.html'}")
    for one in pulled:
        output.say(f"A build to deploy, with its manifest and run.py: {one.folder}")
    if as_json:
        output.json(report)


def _chosen(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [device for device in report["devices"] if device["selected"]]


def _clear(folder: Path) -> None:
    """An empty folder for this run; only a folder of an earlier demo is emptied."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise Conflict(f"{folder} holds other files; name a new folder with -o")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).write_text("Made by `fleetfit demo`; the next run empties this folder.\n")


def _write_data(images: Images, folder: Path) -> tuple[Path, Path]:
    import numpy as np

    paths = folder / "fashion.npz", folder / "fashion-test.npz"
    np.savez(paths[0], image=images.images, targets=images.targets)
    np.savez(paths[1], image=images.test_images, targets=images.test_targets)
    return paths


def _classifier(images: Images, folder: Path, seed: int, epochs: int, fresh: bool, told: Follower) -> Path:
    """The exported classifier, trained on the training split only; the same seed and code give the cached one."""
    try:
        import torch

        from fleetfit.client.demo import classifier
        from fleetfit.compress.intake.splits import split_at_random
    except ImportError as error:
        raise UnsupportedHere(
            f'the demo trains and compresses here, which needs more ({error}); pip install "fleetfit[server]"'
        ) from error
    from fleetfit.client.export import export

    told("exporting the classifier", None)
    key = f"{inspect.getsource(classifier)}|{torch.__version__}|{len(images.images)}|{seed}|{epochs}"
    cached = cache_folder() / f"classifier-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt2"
    archive = folder / "classifier.pt2"
    if fresh or not cached.exists():
        x: NDArray[np.uint8] = images.images  # type: ignore[assignment]
        y: NDArray[np.int64] = images.targets  # type: ignore[assignment]
        # The split that the server will make of the same arrays: what it selects by must be new to the classifier.
        splits = split_at_random(len(x), seed, test=False, labels=y)
        held_out = x[splits.validation], y[splits.validation]
        trained = classifier.train(x[splits.train], y[splits.train], held_out, seed=seed, epochs=epochs, told=told)
        told.note(
            f"trained for {len(trained.accuracies)} epochs in {duration(trained.seconds)}: "
            f"{100 * max(trained.accuracies):.2f} % right on the validation split"
        )
        sample = torch.from_numpy(x[:4].copy())
        cached.parent.mkdir(parents=True, exist_ok=True)
        export(trained.model, {"image": sample}, cached, name="classifier")
    shutil.copyfile(cached, archive)
    return archive
