"""`fleetfit pull`: the build that was chosen for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetfit.client.client import connect
from fleetfit.client.commands.options import AsJson, Server
from fleetfit.client.output import Output
from fleetfit.client.progress import Follower
from fleetfit.client.pulling import needed
from fleetfit.client.tables.words import size
from fleetfit.core.errors import UsageError


def pull(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A job's id, the end of one, or 'last'.", show_default=False)
    ],
    device: Annotated[str, typer.Option(help="The device; needed where the job has several.")] = "",
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A new folder for it.", show_default=False)
    ] = None,
    variant: Annotated[str, typer.Option(help="A variant of the report other than the chosen one.")] = "",
    runtime: Annotated[str, typer.Option(help="The runtime that it is built for, where the variant has several.")] = "",
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Fetch the build that was chosen for a device, with its manifest and a run.py."""
    if folder is None:
        raise UsageError("no folder is named; give -o DIR for the build", field="output")
    output = Output(as_json)
    with connect(server) as client, Follower() as told:
        pulled = client.pull(job, device, folder, variant=variant, runtime=runtime, on_progress=told)
    if as_json:
        output.json({"folder": str(pulled.folder), "build": str(pulled.build), "manifest": pulled.manifest})
        return
    output.say(f"{pulled.build} ({size(pulled.build.stat().st_size)}), for {pulled.manifest.get('device', device)}")
    output.say(f"try it: python {pulled.folder / 'run.py'}   (needs {needed(pulled)})")
    output.say(f"on the device: python {pulled.folder / 'run.py'} --check   (is it what the report says?)")
