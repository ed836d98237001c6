"""`fleetfit models`: check, push, list, show, pull."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetfit.client.client import connect
from fleetfit.client.commands.options import AsJson, Server, application
from fleetfit.client.output import Output
from fleetfit.client.plain import to_plain
from fleetfit.client.progress import Follower
from fleetfit.client.pushing import Source, open_source
from fleetfit.core.digests import short
from fleetfit.core.errors import UsageError

app = application("Check, push and list models.")

Target = Annotated[
    str, typer.Argument(metavar="MODEL", help="FILE.pt2, FILE.onnx, or package.module:factory.", show_default=False)
]
Samples = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npz",
        help="Sample inputs for a factory that returns the model alone; two rows are read.",
        show_default=False,
    ),
]


@app.command()
def push(
    model: Target,
    name: Annotated[str, typer.Option(help="The model's name; else the file's or the module's.")] = "",
    pre: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx",
            help="What makes the model's inputs: never compressed, timed apart, part of end to end.",
            show_default=False,
        ),
    ] = None,
    post: Annotated[
        Path | None,
        typer.Option(metavar="FILE.onnx", help="What reads the model's outputs, in the same way.", show_default=False),
    ] = None,
    samples: Samples = None,
    recovers: Annotated[
        str,
        typer.Option(metavar="VARIANT", help="It is this variant's network, trained further, and not a new model."),
    ] = "",
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Register a model. A factory is called and exported here: your code never runs on the server."""
    output = Output(as_json)
    if recovers:
        if name:
            raise UsageError(
                "a variant's network keeps the model's name; leave --name out with --recovers", field="name"
            )
        if pre is not None or post is not None:
            raise UsageError(
                "a variant's network keeps the model's parts; leave --pre and --post out with --recovers",
                field="pre" if pre is not None else "post",
            )
        _push_recovered(model, recovers, samples, server, output)
        return
    with connect(server) as client, Follower() as told:
        found = client.push_model(model, name, pre=pre, post=post, samples=samples, on_progress=told)
    if as_json:
        output.json({"model": to_plain(found)})
        return
    from fleetfit.client.tables.lists import model_facts

    output.show(model_facts(found))
    named = found.name
    output.say(f"\naccepted as {named}:{found.version}; next: `fleetfit data push FILE.npz --model {named}`")


def _push_recovered(model: str, variant: str, samples: Path | None, server: str, output: Output) -> None:
    with connect(server) as client, Follower() as told:
        found = client.push_recovered(model, variant, samples=samples, on_progress=told)
    if output.as_json:
        output.json({"recovered": to_plain(found)})
        return
    from fleetfit.client.tables.lists import recovered_facts

    output.show(recovered_facts(found))
    name = short(found.recovered)
    output.say(f"\naccepted as {name}; next: `fleetfit compress {found.model} --data D --on DEVICE --recovered {name}`")


@app.command()
def check(model: Target, samples: Samples = None, as_json: AsJson = False) -> None:
    """Check a model on this machine: would it export, and is the archive whole? Nothing is sent."""
    output = Output(as_json)
    with Follower() as told, open_source(model, samples, told) as source:
        told("checking the archive", None)
        facts = _check_file(source)
    if as_json:
        output.json({"ok": True, "model": facts})
        return
    output.say(f"{model} is fit to be pushed")
    for word in ("inputs", "outputs"):
        if facts.get(word):
            output.say(f"{word}: {', '.join(facts[word])}")
    if facts.get("dynamic_batch") is False:
        output.say("its batch size is fixed")
    for note in facts.get("notes", []):
        output.say(f"note: {note}")


def _check_file(source: Source) -> dict[str, Any]:
    """Check what can be checked without the server's confined child; what the archive says of itself."""
    facts: dict[str, Any] = {"name": source.name, "format": source.format, "size_bytes": source.path.stat().st_size}
    if source.format != "pt2":
        return facts
    # Reads no weights and imports no torch.
    from fleetfit.compress.intake.archive import check_archive

    check_archive(source.path)
    with zipfile.ZipFile(source.path) as archive:
        own = next((name for name in archive.namelist() if name.endswith("extra/fleetfit.json")), None)
        if own is not None:
            facts |= json.loads(archive.read(own))
    return facts


@app.command("list")
def list_models(server: Server = "", as_json: AsJson = False) -> None:
    """List all versions of all models."""
    output = Output(as_json)
    with connect(server) as client:
        models = client.models()
    if as_json:
        output.json({"models": [to_plain(model) for model in models]})
    elif not models:
        output.say("there is no model yet; `fleetfit models push FILE.pt2` adds one")
    else:
        from fleetfit.client.tables.lists import models_table

        output.show(models_table(models))


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME:VERSION or an id.", show_default=False)],
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Show what is known about a model."""
    output = Output(as_json)
    with connect(server) as client:
        found = client.model(model)
    if as_json:
        output.json({"model": to_plain(found)})
        return
    from fleetfit.client.tables.lists import model_facts

    output.show(model_facts(found))


@app.command()
def pull(
    variant: Annotated[
        str, typer.Argument(metavar="VARIANT", help="A variant of a report, or its beginning.", show_default=False)
    ],
    trainable: Annotated[bool, typer.Option("--trainable", help="The network with its layers.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A new folder for it.", show_default=False)
    ] = None,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Fetch the network of a variant, to train it in your own code."""
    if not trainable:
        raise UsageError("say --trainable; the build for a device comes with `fleetfit pull JOB`", field="trainable")
    if folder is None:
        raise UsageError("no folder is named; give -o DIR for the network", field="output")
    output = Output(as_json)
    with connect(server) as client, Follower() as told:
        pulled = client.pull_trainable(variant, folder, on_progress=told)
    if as_json:
        output.json({"folder": str(pulled.folder), "network": str(pulled.network), "variant": pulled.variant})
        return
    output.say(f"{pulled.network}, of the variant {pulled.variant[:10]}")
    output.say(f"train it: python {pulled.folder / 'train.py'} DATA.npz   (needs fleetfit[compress])")
