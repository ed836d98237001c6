"""`fleetfit data`: push, list, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetfit.client.client import connect
from fleetfit.client.commands.options import AsJson, Seed, Server, application
from fleetfit.client.output import Output
from fleetfit.client.plain import to_plain
from fleetfit.client.progress import Follower
from fleetfit.core.errors import InvalidInput
from fleetfit.core.metrics import BOX_FORMATS, DEFAULT_METRIC, DETECTION, METRIC_NAMES, metric_info, with_boxes

app = application("Push and list datasets.")

_TASKS = sorted(DEFAULT_METRIC)


@app.command()
def push(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="D.npz",
            help="One array for each input of the model, and 'targets'; or a folder of such .npy files.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="The dataset's name; else the file's.")] = "",
    model: Annotated[str, typer.Option(help="The model that the arrays must fit.")] = "",
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A test split of your own.", show_default=False)
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help=f"What to judge by: {', '.join(METRIC_NAMES)}; :OUTPUT behind it names one that is not the first. "
            "Else by the kind of the targets."
        ),
    ] = "",
    task: Annotated[str, typer.Option(help=f"{', '.join(_TASKS)}; stands for its usual metric.")] = "",
    boxes: Annotated[
        str, typer.Option(help=f"How the model and 'targets' write boxes: {', '.join(BOX_FORMATS)}; for detection.")
    ] = "",
    seed: Seed = 0,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Register arrays: they are checked against the model and split for training, validation and test."""
    output = Output(as_json)
    with connect(server) as client, Follower() as told:
        found = client.push_dataset(
            data, name, model=model, test=test, metric=chosen_metric(metric, task, boxes), seed=seed, on_progress=told
        )
    if as_json:
        output.json({"dataset": to_plain(found)})
        return
    from fleetfit.client.tables.lists import dataset_facts

    output.show(dataset_facts(found))
    output.say(
        f"\naccepted as {found.name}:{found.version}; next: `fleetfit compress MODEL --data {found.name} --on DEVICE`"
    )


def chosen_metric(metric: str, task: str, boxes: str = "") -> str:
    """The metric as `_chosen` has it, with how boxes are written. Raises InvalidInput."""
    chosen = _chosen(metric, task or (DETECTION if boxes else ""))
    if chosen and metric_info(chosen).kind == "map" and not boxes and "@" not in chosen:
        raise InvalidInput(f"boxes are judged: give --boxes, one of {', '.join(BOX_FORMATS)}", field="boxes")
    return with_boxes(chosen, boxes) if boxes else chosen


def _chosen(metric: str, task: str) -> str:
    """The metric that was named, or a task's usual one; empty where neither was. Raises InvalidInput."""
    if task and task not in _TASKS:
        raise InvalidInput(f"there is no task '{task}'; choose one of {', '.join(_TASKS)}", field="task")
    if metric:
        info = metric_info(metric)
        if task and info.tasks and task not in info.tasks:
            judged = " or ".join(info.tasks)
            raise InvalidInput(f"{metric} judges a {judged}, not a {task}; leave one of the two out", field="metric")
        return metric
    return DEFAULT_METRIC.get(task, "")


@app.command("list")
def list_data(server: Server = "", as_json: AsJson = False) -> None:
    """List all versions of all datasets."""
    output = Output(as_json)
    with connect(server) as client:
        datasets = client.datasets()
    if as_json:
        output.json({"datasets": [to_plain(data) for data in datasets]})
    elif not datasets:
        output.say("there is no dataset yet; `fleetfit data push FILE.npz` adds one")
    else:
        from fleetfit.client.tables.lists import datasets_table

        output.show(datasets_table(datasets))


@app.command()
def show(
    data: Annotated[str, typer.Argument(metavar="DATASET", help="NAME, NAME:VERSION or an id.", show_default=False)],
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Show what is known about a dataset."""
    output = Output(as_json)
    with connect(server) as client:
        found = client.dataset(data)
    if as_json:
        output.json({"dataset": to_plain(found)})
        return
    from fleetfit.client.tables.lists import dataset_facts

    output.show(dataset_facts(found))
