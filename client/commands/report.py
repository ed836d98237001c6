"""`fleetfit report`: what was measured for a job, and what was chosen."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fleetfit.client.client import Client, connect
from fleetfit.client.commands.options import AsJson, Server
from fleetfit.client.output import Output
from fleetfit.client.progress import Follower
from fleetfit.client.tables.report_rows import TABLES
from fleetfit.core.errors import UsageError

_FORMATS: Final = ("table", "json", "html", "csv", "md")


def report(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A job's id, the end of one, or 'last'.", show_default=False)
    ],
    device: Annotated[str, typer.Option(help="Only this device.")] = "",
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(_FORMATS)}.")] = "",
    table: Annotated[
        str,
        typer.Option(
            help=f"With csv, what has a line: {', '.join(TABLES)} (those where --scaling or --profile measured).",
            show_default="candidates",
        ),
    ] = "",
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file.", show_default=False)
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compute every figure again from the raw samples; exit code 1 if any differs."),
    ] = False,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Show what was measured for a job, what was chosen for each device, and why."""
    if verify:
        if form or table or file is not None:
            raise UsageError("--verify prints what it finds; leave --format, --table and -o out", field="verify")
        _verify(job, device, server, as_json)
        return
    form = chosen_format(form, file, as_json)
    if table and table not in TABLES:
        raise UsageError(f"there is no table '{table}'; choose one of {', '.join(TABLES)}", field="table")
    if table and form != "csv":
        raise UsageError("--table goes with --format csv; the other formats show all of them", field="table")
    if form == "html" and file is None and sys.stdout.isatty():
        raise UsageError("a page is not for the terminal; give -o FILE.html", field="output")
    with connect(server) as client:
        content = client.report_html(job, device) if form == "html" else _text(client, job, device, form, table)
    if file is not None:
        write_whole(file, content)
        output = Output(as_json)
        if as_json:
            output.json({"file": str(file), "format": form, "size_bytes": len(content)})
        output.say(f"written to {file}")
    elif content:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()


def _verify(job: str, device: str, server: str, as_json: bool) -> None:
    output = Output(as_json)
    with connect(server) as client, Follower() as told:
        found = client.verify(job, device, on_progress=told)
    if as_json:
        output.json(dataclasses.asdict(found) | {"holds": found.holds})
    for one in found.differences:
        output.say(
            f"{one.device}: {one.candidate}: {one.figure} is printed as {one.printed}, and comes out as {one.computed}"
        )
    for reason in found.skipped:
        output.say(f"not computed again: {reason}")
    counted = f"{found.figures} figures computed again from {found.results} raw results"
    if not found.figures:
        output.say(f"{counted}: the report names no raw samples; its server is older")
    elif found.differences:
        output.say(f"{counted}: {len(found.differences)} differ")
    else:
        output.say(f"{counted}: all come out as printed")
    if not found.holds:
        raise typer.Exit(1)


def chosen_format(form: str, file: Path | None, as_json: bool) -> str:
    """The form: what was asked for, else what the file's ending says, else a table. Raises UsageError."""
    if form and form not in _FORMATS:
        raise UsageError(f"there is no format '{form}'; choose one of {', '.join(_FORMATS)}", field="format")
    if form:
        return form
    if file is not None and file.suffix.removeprefix(".") in _FORMATS:
        return file.suffix.removeprefix(".")
    return "json" if as_json else "table"


def _text(client: Client, job: str, device: str, form: str, table: str) -> bytes:
    found = client.report(job, device)
    if form == "json":
        return (json.dumps(found) + "\n").encode()
    if form == "table":
        return table_text(found).encode()
    from fleetfit.client.tables.report_text import report_csv, report_markdown

    return (report_csv(found, table or "candidates") if form == "csv" else report_markdown(found)).encode()


def table_text(found: Mapping[str, Any]) -> str:
    """The table, with colours where standard output is a terminal."""
    from fleetfit.client.output import console
    from fleetfit.client.tables.report import report_parts

    screen = console()
    with screen.capture() as captured:
        for part in report_parts(found):
            screen.print(part)
    return captured.get()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    folder = file.absolute().parent
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as target:
            target.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)
