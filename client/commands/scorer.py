"""`fleetfit scorer`: a metric of one's own, computed on this machine for jobs of the server."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from fleetfit.client.commands.options import AsJson, Server, application
from fleetfit.client.output import Output
from fleetfit.client.tables.words import job_id, significant

scorer = application("Judge jobs by a metric of your own, which runs here and never on the server.")


@scorer.command()
def score(
    metric: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="FUNCTION(outputs, targets) gives one score per sample.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="NAME in `--metric user:NAME`; else the function's.")] = "",
    lower_is_better: Annotated[
        bool | None,
        typer.Option("--lower-is-better/--higher-is-better", help="Else the function's attribute.", show_default=False),
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="What scores are counted in; else the function's attribute.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when no running job is judged by it any more.")] = False,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Compute a metric of your own over the outputs that devices return, for all your jobs with `--metric user:NAME`."""
    from fleetfit.client.connection import Connection
    from fleetfit.client.scoring import Scorer, load_metric
    from fleetfit.client.servers import find_server

    output = Output(as_json)
    loaded = load_metric(metric, name=name, lower_is_better=lower_is_better, unit=unit)
    connection = Connection(find_server(server, ""))
    try:
        serving = Scorer(connection, loaded, lambda sentence: typer.echo(f"fleetfit: {sentence}", err=True))
        output.say(f"scoring jobs with `--metric user:{loaded.name}` of {connection.address}; Ctrl+C ends it")
        for one in serving.run(once=once):
            if as_json:
                output.json({"scored": dataclasses.asdict(one)})
            said = one.error or f"{significant(one.mean or 0.0, 4)} over {one.samples} samples"
            output.say(f"{job_id(one.job)}  {one.device}  {one.recipe}  {one.split}: {said}")
    finally:
        connection.close()
