"""`fleetfit agent`: enrols this device if it is not enrolled yet, then becomes the resident agent."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from fleetfit.agent.caps import parse_cores
from fleetfit.agent.identity import FOLDER, Identity, damaged, load_identity
from fleetfit.core.errors import Conflict, UsageError

app = typer.Typer(help="Work for a server on this device, or see what it lacks.", no_args_is_help=False)


def default_state() -> Path:
    """Where an agent keeps its identity, cache and spool unless told otherwise."""
    return Path(os.environ.get("FLEETFIT_AGENT_STATE") or platformdirs.user_state_path("fleetfit") / "agent")


State = Annotated[Path | None, typer.Option(help="Folder for identity, cache and results.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.callback(invoke_without_command=True)
def agent(
    context: typer.Context,
    server: Annotated[str, typer.Option(help="The server's address, HOST:PORT, as `devices enroll` prints it.")] = "",
    token: Annotated[str, typer.Option(help="One-time token from `fleetfit devices enroll`.")] = "",
    name: Annotated[str, typer.Option(help="A name for this device.")] = "",
    state: State = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads that inference may use; 0 is all cores.")] = 0,
    cache_mb: Annotated[int, typer.Option(min=16, help="Largest size of the folder of downloaded builds.")] = 2048,
    cores: Annotated[
        str, typer.Option(metavar="LIST", help="The processors it may use, such as 0-3,6; else all.")
    ] = "",
    memory_mb: Annotated[int, typer.Option(min=0, help="The most memory that a build may use; 0 is what is free.")] = 0,
    beside: Annotated[
        str, typer.Option(metavar="NAME", help="An application that goes on meanwhile: a condition.")
    ] = "",
    emulated: Annotated[bool, typer.Option(help="Say that this device is emulated; its timings mean nothing.")] = False,
    once: Annotated[bool, typer.Option(help="Do one task, report it, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Enrol this device (first time only) and measure for the server until stopped."""
    folder = state or default_state()
    context.obj = folder
    if context.invoked_subcommand is not None:
        return
    if cores:
        parse_cores(cores)
    _tell(*_enrol_if_needed(folder, server, token, name), as_json)
    arguments = [sys.executable, "-m", "fleetfit.agent", "--state", str(folder), "--cache-mb", str(cache_mb)]
    arguments += ["--threads", str(threads)]
    arguments += [*(["--memory-mb", str(memory_mb)] if memory_mb else []), *(["--cores", cores] if cores else [])]
    arguments += ["--beside", beside] if beside else []
    arguments += [flag for flag, wanted in (("--emulated", emulated), ("--once", once), ("--json", as_json)) if wanted]
    sys.stdout.flush()
    # One heap arena: with glibc's default of eight per core the resident agent grows by megabytes for nothing.
    # And nothing in the log from gRPC's core, which has a line of its own for every failed handshake; ours says it better.
    defaults = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072", "GRPC_VERBOSITY": "NONE"}
    environment = defaults | dict(os.environ)
    os.execve(sys.executable, arguments, environment)  # noqa: S606 - becomes our own module, no shell


def _enrol_if_needed(folder: Path, server: str, token: str, name: str) -> tuple[Identity, str]:
    """The identity, and what was done."""
    identity = load_identity(folder)
    if identity is not None:
        if token and not _is_of(token, identity, folder):
            raise Conflict(
                f"this device works for another server, at {identity.server} with another CA, and goes on with that: the "
                f"token is not of that one; to move the device here, remove {folder / FOLDER} and paste the line again",
                field="token",
            )
        unused = " (the token was not used)" if token else ""
        return identity, f"already enrolled as {identity.name} at {identity.server}{unused}"
    if not server or not token:
        missing = "--token is" if server else "--server is" if token else "--server and --token are"
        raise UsageError(
            f"this device is not enrolled yet and {missing} missing; run `fleetfit devices enroll` where the "
            "server is, and paste the line that it prints here"
        )
    from fleetfit.agent.enrol import enrol

    identity = enrol(server, token, folder, name=name)
    return identity, f"enrolled as {identity.name} at {identity.server}"


def _is_of(token: str, identity: Identity, folder: Path) -> bool:
    """Whether the token was made by the server that this device is enrolled with."""
    from fleetfit.proto.trust import parse_token, public_key_digest

    wanted = parse_token(token).ca_digest
    try:
        return public_key_digest(ssl.PEM_cert_to_DER_cert(identity.ca_pem.decode())) == wanted
    except ValueError as error:
        raise damaged(folder, error) from error


def _tell(identity: Identity, said: str, as_json: bool) -> None:
    facts = {"device": identity.name, "device_id": identity.device_id, "message": said}
    print(json.dumps(facts) if as_json else said, flush=True)


@app.command()
def enroll(
    context: typer.Context,
    server: Annotated[str, typer.Option(help="The server's address, HOST:PORT, as `devices enroll` prints it.")] = "",
    token: Annotated[str, typer.Option(help="One-time token from `fleetfit devices enroll`.")] = "",
    name: Annotated[str, typer.Option(help="A name for this device.")] = "",
    as_json: AsJson = False,
) -> None:
    """Enrol this device if it is not enrolled yet, and end."""
    _tell(*_enrol_if_needed(context.obj or default_state(), server, token, name), as_json)


@app.command()
def doctor(
    context: typer.Context,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Save what the probes read of this board, for tests, and end.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what this device needs to measure, and say what to do about what is missing."""
    if record is not None:
        from fleetfit.agent.__main__ import probe_device
        from fleetfit.agent.disk import give_temporary_folder
        from fleetfit.agent.probe.recording import record as record_board

        give_temporary_folder((context.obj or default_state()) / "tmp")
        with tempfile.TemporaryDirectory() as own:
            found = asyncio.run(probe_device(Path(own), threads=0, emulated=False))
        count = record_board(record, runtimes=found.runtimes)
        said = f"recorded {count} files in {record}, without serial numbers and names; look them through before you send them"
        print(json.dumps({"record": str(record), "files": count}) if as_json else said, flush=True)
        return
    from fleetfit.agent.doctor import examine, show

    findings = examine(context.obj or default_state())
    show(findings, as_json)
    if any(finding.verdict == "missing" for finding in findings):
        raise typer.Exit(1)
