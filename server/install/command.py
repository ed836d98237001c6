"""`fleetfit server wheels`: what agents are installed from."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleetfit.server.install.shelf import Shelf

wheels = typer.Typer(name="wheels", help="The wheels that devices install their agent from.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_LISTED = 4


@wheels.command()
def fetch(
    context: typer.Context,
    python: Annotated[
        list[str], typer.Option(help="A device's Python, such as 3.11; may be repeated. Else 3.10 to 3.13.")
    ] = [],  # noqa: B006 - typer reads it
    machine: Annotated[
        list[str], typer.Option(help="aarch64 or x86_64; may be repeated. Else both.", show_default=False)
    ] = [],  # noqa: B006 - typer reads it
    runtime: Annotated[
        list[str], typer.Option(help="onnxruntime, ncnn or openvino; may be repeated. Else onnxruntime.")
    ] = [],  # noqa: B006 - typer reads it
    as_json: AsJson = False,
) -> None:
    """Fetch what agents and runtimes need on devices from the package index, once, with this machine's network."""
    from fleetfit.server.install.fetching import fetch as fetch_wheels
    from fleetfit.server.install.shelf import MACHINES, PYTHONS, RUNTIMES, Target

    known = {f"{major}.{minor}": (major, minor) for major, minor in PYTHONS}
    pythons = [_one_of(text, known, "python") for text in python or ["3.10", "3.11", "3.12", "3.13"]]
    machines = [_one_of(text, MACHINES, "machine") for text in machine or MACHINES]
    runtimes = [_one_of(text, RUNTIMES, "runtime") for text in runtime or RUNTIMES[:1]]
    targets = [Target(known[text], name) for name in machines for text in pythons]

    def tell(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    fetch_wheels(_shelf(context), targets, runtimes, tell)
    _show(context, as_json)


@wheels.command()
def add(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="WHEEL...", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Add wheel files that came here by other ways, for a server without a package index."""
    from fleetfit.server.install.fetching import add as add_wheels

    add_wheels(_shelf(context), files)
    _show(context, as_json)


@wheels.command("list")
def list_wheels(context: typer.Context, as_json: AsJson = False) -> None:
    """Say which kinds of devices an agent can be installed on, with which runtimes, and what is lacking."""
    _show(context, as_json)


def _shelf(context: typer.Context) -> Shelf:
    from fleetfit.server.install.shelf import Shelf
    from fleetfit.server.state import StateFolder, default_state

    return Shelf(StateFolder((context.obj or default_state()).absolute()).wheels)


def _one_of(text: str, known: Collection[str], name: str) -> str:
    if text not in known:
        raise typer.BadParameter(f"there is no {name} '{text}' here; there are {', '.join(known)}")
    return text


def _show(context: typer.Context, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fleetfit.server.install.installer import place_own_wheel, take_stock
    from fleetfit.server.install.shelf import MACHINES, PYTHONS, Target

    shelf = _shelf(context)
    if shelf.listing():
        place_own_wheel(shelf)
    found = [take_stock(shelf, Target(python, machine)) for machine in MACHINES for python in PYTHONS]
    if as_json:
        targets = {
            str(one.target): {
                "agent": one.complete,
                "runtimes": sorted(one.runtimes) if one.complete else [],
                "wheels": sorted({w.path.name for each in (one.agent, *one.runtimes.values()) for w in each}),
                "lacking": {name: list(lacking) for name, lacking in one.lacking.items()},
            }
            for one in found
        }
        print(json.dumps({"folder": str(shelf.folder), "targets": targets}))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Python", "machine", "agent", "runtimes", "lacking"):
        table.add_column(heading, overflow="fold")
    for one in found:
        lacking = one.lacking.get("agent", ())
        more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        table.add_row(
            f"{one.target.python[0]}.{one.target.python[1]}",
            one.target.machine,
            "yes" if one.complete else "no",
            ", ".join(sorted(one.runtimes)) if one.complete else "-",
            Text(", ".join(text.partition("<")[0].partition(">")[0] for text in lacking[:_LISTED]) + more),
        )
    Console().print(table)
    if not any(one.complete for one in found):
        print("no device can be given its agent yet; run `fleetfit server wheels fetch`")
