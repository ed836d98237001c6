"""`fleetfit compress`: fit a model to devices, or carry one recipe out on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fleetfit.client.commands.options import (
    AcceptEmulated,
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
from fleetfit.core.errors import UsageError

compress = application("Fit a model to devices: compress, measure, select.")


@compress.command(cls=SeveralValues)
def fit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="NAME or NAME:VERSION; with --local a file.", show_default=False)
    ],
    data: Annotated[str, typer.Option(help="A dataset; with --local an .npz file.")] = "",
    on: On = [],  # noqa: B006 - typer reads it
    recipe: Annotated[
        list[str],
        typer.Option(metavar="NAME_OR_FILE...", help="Recipes by name or YAML file; else the default set."),
    ] = [],  # noqa: B006 - typer reads it
    recovered: Annotated[
        list[str],
        typer.Option(
            metavar="NAME...", help="Networks trained in your own code (`models push --recovers`), beside the recipes."
        ),
    ] = [],  # noqa: B006 - typer reads it
    search: Annotated[bool, typer.Option("--search", hidden=True)] = False,
    max_drop: Annotated[
        str, typer.Option(metavar="1 | 2%", help="Largest loss of the metric, in points or relative to the original's.")
    ] = "",
    p95_ms: Annotated[
        float | None, typer.Option(help="Largest 95th percentile of the model's latency.", show_default=False)
    ] = None,
    p95_end_to_end_ms: Annotated[
        float | None,
        typer.Option(help="The same with its pre and post parts, where it has any.", show_default=False),
    ] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="Largest peak memory (1 MB is a million bytes).", show_default=False)
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Largest build.", show_default=False)] = None,
    threads: Threads = [],  # noqa: B006 - typer reads it
    batch: Batch = [],  # noqa: B006 - typer reads it
    runtime: Runtime = [],  # noqa: B006 - typer reads it
    scaling: Scaling = False,
    profile: Profile = False,
    sustained: Sustained = "",
    device_samples: DeviceSamples = 0,
    if_not_quiet: IfNotQuiet = "mark",
    power_mode: PowerMode = "",
    minimize: Annotated[
        str, typer.Option(help="latency, energy, size or memory, among what meets the limits.")
    ] = "latency",
    incumbent: Annotated[str, typer.Option("--incumbent", hidden=True)] = "",
    budget: Annotated[str, typer.Option(metavar="30m", help="Time for the whole job.")] = "",
    metric: Annotated[str, typer.Option(help="The metric; else the dataset's.")] = "",
    seed: Seed = 0,
    accept_emulated: AcceptEmulated = False,
    wait: Wait = False,
    plan: Plan = False,
    local: Annotated[
        bool, typer.Option("--local", help="Carry one recipe out on a file, here; no server, nothing measured.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="With --local: a new folder.", show_default=False),
    ] = None,
    device_profile: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="With --local: the kind of device to fit widths to, as `devices show` names it."
        ),
    ] = "",
    compute: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(help="With --local: where training steps compute; auto takes CUDA where PyTorch has it."),
    ] = "cpu",
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Fit a model to devices: compress it in many ways, measure each on them, select for each, and say why."""
    if search:
        raise UsageError(
            "--search is not available yet; name recipes with --recipe, or take the default set", field="search"
        )
    if incumbent:
        raise UsageError("--incumbent is not available yet; leave it out", field="incumbent")
    if local:
        from fleetfit.client.commands.local import compress_here

        if on or wait or plan:
            raise UsageError("--local needs no device; leave --on, --wait and --plan out", field="local")
        if recovered:
            raise UsageError("--recovered is for a server's jobs; leave it out with --local", field="recovered")
        limited = any(limit is not None for limit in (p95_ms, p95_end_to_end_ms, max_memory_mb))
        measures = limited or budget or sustained or device_samples or scaling or profile
        if measures or if_not_quiet != "mark" or power_mode:
            raise UsageError(
                "--local measures nothing; of the limits give only --max-drop and --max-size-mb with it", field="local"
            )
        compress_here(
            Path(model),
            data,
            recipe,
            out,
            metric=metric,
            seed=seed,
            threads=threads,
            runtimes=runtime,
            device_profile=device_profile,
            max_drop=max_drop,
            max_size_mb=max_size_mb,
            compute=compute,
            as_json=as_json,
        )
        return
    if compute != "cpu":
        raise UsageError(
            "--compute goes with --local; a server computes where `fleetfit server --compute` says", field="compute"
        )
    if device_profile:
        raise UsageError(
            "--device-profile goes with --local; leave it out, devices have theirs", field="device_profile"
        )
    if out is not None:
        raise UsageError("-o goes with --local; `fleetfit pull` fetches what a server made", field="output")
    wanted = Wanted(
        model,
        data=data,
        on=on,
        recipes=recipe,
        max_drop=max_drop,
        p95_ms=p95_ms,
        p95_end_to_end_ms=p95_end_to_end_ms,
        max_memory_mb=max_memory_mb,
        max_size_mb=max_size_mb,
        threads=threads,
        batch=batch,
        minimize=minimize,
        budget=budget,
        seed=seed,
        metric=metric,
        scaling=scaling,
        profile=profile,
        sustained=sustained,
        device_samples=device_samples,
        if_not_quiet=if_not_quiet,
        power_mode=power_mode,
        accept_emulated=accept_emulated,
        runtimes=runtime,
        recovered=recovered,
    )
    if not data:
        raise UsageError(
            "no dataset is named; give --data NAME (`fleetfit data push` registers one), or measure the model as it is with "
            "`fleetfit bench`",
            field="data",
        )
    start_job(wanted, server, wait=wait, plan=plan, as_json=as_json)
