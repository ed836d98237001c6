"""`fleetfit bench`: a model measured as it is."""

from __future__ import annotations

from typing import Annotated

import typer

from fleetfit.client.commands.options import (
    AsJson,
    Batch,
    DeviceSamples,
    IfNotQuiet,
    On,
    Plan,
    PowerMode,
    Profile,
    Runtime,
    Scaling,
    Seed,
    Server,
    SeveralValues,
    Sustained,
    Threads,
    Wait,
    application,
)
from fleetfit.client.commands.start import start_job
from fleetfit.client.requests import Wanted

bench = application("Measure a model as it is on devices; the same report, no compression.")


@bench.command(cls=SeveralValues)
def measure(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME:VERSION or an id.", show_default=False)],
    on: On = [],  # noqa: B006 - typer reads it
    data: Annotated[str, typer.Option(help="A dataset, to compute the metric on each device.")] = "",
    metric: Annotated[str, typer.Option(help="The metric; else the dataset's.")] = "",
    threads: Threads = [],  # noqa: B006 - typer reads it
    batch: Batch = [],  # noqa: B006 - typer reads it
    runtime: Runtime = [],  # noqa: B006 - typer reads it
    scaling: Scaling = False,
    profile: Profile = False,
    sustained: Sustained = "",
    device_samples: DeviceSamples = 0,
    if_not_quiet: IfNotQuiet = "mark",
    power_mode: PowerMode = "",
    seed: Seed = 0,
    wait: Wait = False,
    plan: Plan = False,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Measure a model as it is on devices; the same report, no compression."""
    wanted = Wanted(
        model,
        data=data,
        on=on,
        metric=metric,
        threads=threads,
        batch=batch,
        runtimes=runtime,
        seed=seed,
        scaling=scaling,
        profile=profile,
        sustained=sustained,
        device_samples=device_samples,
        if_not_quiet=if_not_quiet,
        power_mode=power_mode,
        accept_emulated=True,
        bench=True,
    )
    start_job(wanted, server, wait=wait, plan=plan, as_json=as_json)
