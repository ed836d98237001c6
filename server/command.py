"""`fleetfit server`: starts the server, or checks that it could start."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from fleetfit.server.install.command import wheels

_MB = 1 << 20

# `wheels` is a command of its own below this one.
server = typer.Typer(help="Run the server that compresses models and leads the devices.", no_args_is_help=False)
server.add_typer(wheels)


@server.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    listen: Annotated[str, typer.Option(help="Address for people and enrolment (TLS); port 0 takes a free one.")] = (
        "127.0.0.1:7600"
    ),
    agent_listen: Annotated[str, typer.Option(help="Address for agents (mutual TLS).")] = "127.0.0.1:7601",
    web: Annotated[
        str, typer.Option(help="Address for read-only web pages, on this machine only, for example 127.0.0.1:7602.")
    ] = "",
    install_listen: Annotated[
        str,
        typer.Option(
            help="Address that devices fetch their agent from (HTTP; they compare it with a digest), or none. "
            "Else the port three above that of --listen.",
            show_default=False,
        ),
    ] = "",
    state: Annotated[
        Path | None, typer.Option(help="Folder for everything the server keeps.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the folder and --compute, and end.")] = False,
    dev: Annotated[bool, typer.Option("--dev", help="For development: gRPC reflection, and more in the log.")] = False,
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Print a new token for people on other machines; the older one ends.")
    ] = False,
    task_memory_mb: Annotated[int, typer.Option(min=256, help="Memory that one compression process may use.")] = 8192,
    task_minutes: Annotated[int, typer.Option(min=1, help="Time that one compression process may take.")] = 240,
    compress_threads: Annotated[
        int,
        typer.Option(
            min=0,
            help="Threads of one compression process; 0 is all cores. Their number changes results: variants are made anew.",
        ),
    ] = 0,
    compute: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(
            help="Where steps that train compute; auto takes CUDA where it works. Variants are made anew, see threads."
        ),
    ] = "cpu",
    device_wait: Annotated[
        str, typer.Option(help="How long a job waits for a device that is away, for example 90s, 30m or 2h.")
    ] = "24h",
    health_every: Annotated[
        str,
        typer.Option(
            help="How often a device measures the golden model, to show that it is as it was, for example 6h; 0 for only when "
            "a person asks."
        ),
    ] = "6h",
    method: Annotated[str, typer.Option(help="How devices measure: standard, or quick for trials.")] = "standard",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output, one object per line.")] = False,
) -> None:
    """Run the server that compresses models and leads the devices, until it is stopped."""
    context.obj = state
    if context.invoked_subcommand is not None:
        return
    # gRPC's core logs a line of its own for every handshake that fails; ours says it better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from fleetfit.core.children import Limits
    from fleetfit.core.durations import milliseconds
    from fleetfit.core.errors import InvalidInput
    from fleetfit.proto.methods import named_method
    from fleetfit.server.engine.engine import Settings
    from fleetfit.server.running import Options, Running, check_addresses, check_server, serve
    from fleetfit.server.state import default_state

    try:
        named_method(method)
        device_wait_s = milliseconds(device_wait) / 1000
        health_every_s = 0.0 if health_every == "0" else milliseconds(health_every) / 1000
    except InvalidInput as error:
        # A wrong option, which has an exit code of its own.
        raise typer.BadParameter(error.message) from error
    options = Options(
        listen=listen,
        agent_listen=agent_listen,
        web=web,
        install_listen=install_listen,
        state=(state or default_state()).absolute(),
        settings=Settings(
            method=method,
            compress_threads=compress_threads or len(os.sched_getaffinity(0)),
            device_wait_s=device_wait_s,
            health_every_s=health_every_s,
        ),
        task_limits=Limits(memory_bytes=task_memory_mb * _MB, wall_s=task_minutes * 60),
        compute=compute,
        dev=dev,
        new_token=new_token,
    )
    try:
        check_addresses(options)
    except InvalidInput as error:
        raise typer.BadParameter(error.message) from error
    _log_to_stderr(as_json, dev)
    if check:
        found = asyncio.run(check_server(options))
        plain = f"{options.state} is in order" + ("" if compute == "cpu" else f"\n{found.compute.sentence()}")
        print(json.dumps({"ok": True, **found.public()}) if as_json else plain, flush=True)
        return

    def ready(running: Running) -> None:
        if as_json:
            line = {"ready": True, **running.public(), "state": str(running.state)}
            print(json.dumps(line | ({"token": running.token} if running.token else {})), flush=True)
            return
        print(f"people and enrolment: {running.listen}\nagents:               {running.agent_listen}")
        if running.install_listen:
            print(f"agents are fetched:   http://{running.install_listen}/")
        if running.web:
            print(f"web pages:            http://{running.web}/")
        if running.token:
            print(
                "\nOn another machine, use this server with (shown only now; make another with --new-token):\n"
                f"  export FLEETFIT_SERVER={running.listen} FLEETFIT_TOKEN={running.token}"
            )
        print("\nServing; stop with Ctrl-C.", flush=True)

    asyncio.run(serve(options, ready))


def _log_to_stderr(as_json: bool, dev: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("fleetfit").setLevel(logging.DEBUG if dev else logging.INFO)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
