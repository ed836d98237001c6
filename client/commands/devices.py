"""`fleetfit devices`: the fleet."""

from __future__ import annotations

import json
import shlex
import socket
import time
from typing import Annotated, Any, Final

import typer

from fleetfit.client.client import Client, connect
from fleetfit.client.commands.options import AsJson, Server, application
from fleetfit.client.output import Output
from fleetfit.client.plain import to_plain
from fleetfit.client.progress import Follower
from fleetfit.client.requests import duration_ms, split_names
from fleetfit.client.servers import LOOPBACK
from fleetfit.client.tables.words import duration
from fleetfit.core.errors import NotFound, TimedOut
from fleetfit.proto.trust import split_address
from fleetfit.proto.v1 import devices_pb2

app = application("Register devices, list them, label or pause them.")

Device = Annotated[str, typer.Argument(metavar="DEVICE", help="A device's name or id.", show_default=False)]


@app.command()
def enroll(
    name: Annotated[str, typer.Option(help="A name for the device; else it takes its host name.")] = "",
    label: Annotated[list[str], typer.Option(help="A label for the device; may be repeated.", show_default=False)] = [],  # noqa: B006 - typer reads it
    valid: Annotated[str, typer.Option(help="How long the token may be used, for example 30m; else one hour.")] = "",
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Make a one-time token for a new device, and print the line to paste on it."""
    output = Output(as_json)
    with connect(server) as client:
        made = client.enrolment_token(name, split_names(label), duration_ms(valid, "valid") if valid else 0)
        address, only_here = reachable_address(client)
    more = ["--server", address, "--token", made.token, *(["--name", name] if name else [])]
    line = shlex.join(["fleetfit", "agent", *more])
    install = install_line(made, address, more) if made.installer_sha256 else ""
    if as_json:
        facts = {"token": made.token, "command": line, "server": address, "expires_unix_ms": made.expires_unix_ms}
        output.json({**facts, "install": install or None, "install_for": list(made.installer_targets)})
        return
    left = duration(made.expires_unix_ms / 1000 - time.time())
    if install:
        output.say(
            f"Paste this on the device (it works once, within {left}; sudo in front makes a service of it):\n\n    {install}\n\n"
            f"It needs python3 there and nothing else ({', '.join(made.installer_targets)}). Where fleetfit is installed already:\n"
        )
        output.say(f"    {line}\n")
    else:
        output.say(
            f"Paste this on the device, where fleetfit is installed (it works once, within {left}):\n\n    {line}\n"
        )
        output.say("`fleetfit server wheels fetch` on the server makes this a line that also installs it.\n")
    if only_here:
        output.say(
            "The server listens on this machine only, so this must be it. For other devices, start the server with\n"
            "--listen 0.0.0.0:7600 --agent-listen 0.0.0.0:7601."
        )


# Python, because the agent needs it anyway, and a device may have neither curl nor a place for files. What comes is run only
# if its digest is the line's.
_FETCH: Final = (
    "import sys,hashlib,urllib.request as u;sys.tracebacklimit=0;b=u.urlopen(sys.argv[1]).read();"
    'exec(b if hashlib.sha256(b).hexdigest()==sys.argv[2] else exit("another installer than this line is for: nothing was run"))'
)


def install_line(made: devices_pb2.CreateEnrolmentTokenResponse, server: str, more: list[str]) -> str:
    """What to paste on a device that has nothing of ours yet."""
    host, port = made.installer_address.rpartition(":")[::2]
    host = host or server.rpartition(":")[0]
    return shlex.join(["python3", "-c", _FETCH, f"http://{host}:{port}", made.installer_sha256, *more])


@app.command("list")
def list_devices(
    label: Annotated[
        list[str], typer.Option(help="Only devices with this label; may be repeated.", show_default=False)
    ] = [],  # noqa: B006 - typer reads it
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """List the registered devices."""
    output = Output(as_json)
    with connect(server) as client:
        devices = client.devices(split_names(label))
    if as_json:
        output.json({"devices": [_plain(device) for device in devices]})
    elif not devices:
        what = (
            "no device bears that label" if label else "no device is registered yet; `fleetfit devices enroll` adds one"
        )
        output.say(what)
    else:
        from fleetfit.client.tables.lists import devices_table

        output.show(devices_table(devices))


@app.command()
def show(device: Device, server: Server = "", as_json: AsJson = False) -> None:
    """Show what is known about a device."""
    output = Output(as_json)
    with connect(server) as client:
        found = client.device(device)
    if as_json:
        output.json({"device": _plain(found)})
        return
    from fleetfit.client.tables.lists import device_facts

    output.show(device_facts(found))


@app.command()
def label(
    device: Device,
    labels: Annotated[list[str] | None, typer.Argument(metavar="LABEL...", show_default=False)] = None,
    remove: Annotated[list[str], typer.Option(metavar="LABEL", help="Take a label away; may be repeated.")] = [],  # noqa: B006 - typer reads it
    only: Annotated[bool, typer.Option("--only", help="Take all other labels away.")] = False,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Add labels to a device, or take some away."""
    added, removed = split_names(labels or []), set(split_names(remove))
    if not (added or removed or only):
        raise typer.BadParameter("name labels to add, --remove some, or --only to take all away")
    with connect(server) as client:
        before = [] if only else list(client.device(device).labels)
        wanted = [one for one in dict.fromkeys([*before, *added]) if one not in removed]
        _tell(Output(as_json), client.set_labels(device, wanted), "now has " + (", ".join(wanted) or "no labels"))


@app.command()
def pause(device: Device, server: Server = "", as_json: AsJson = False) -> None:
    """Give a device no new work; what it holds it finishes."""
    with connect(server) as client:
        _tell(Output(as_json), client.pause(device), "is paused; `fleetfit devices resume` gives it work again")


@app.command()
def resume(device: Device, server: Server = "", as_json: AsJson = False) -> None:
    """Give a paused device work again."""
    with connect(server) as client:
        _tell(Output(as_json), client.resume(device), "takes work again")


@app.command()
def check(
    device: Device,
    wait: Annotated[
        str, typer.Option(help="Wait so long for its verdict, for example 5m; exit code 1 where it does not pass.")
    ] = "",
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Ask for a health check as soon as the device is free: the golden model against its own history."""
    limit_ms = duration_ms(wait, "wait") if wait else 0
    output = Output(as_json)
    with connect(server) as client:
        asked = client.check(device)
        if not limit_ms:
            held_up = "it is paused" if asked.paused else "not within its hours" if not asked.within_hours else ""
            when = f"once it is free and may be given work ({held_up})" if held_up else "as soon as it is free"
            _tell(output, asked, f"is checked {when}; `fleetfit devices show` tells the verdict")
            return
        found = _checked(client, asked, limit_ms / 1000, output)
    from fleetfit.client.tables.lists import health_words

    _tell(output, found, health_words(found))
    if found.last_check.verdict not in ("passed", "new"):
        raise typer.Exit(1)


def _checked(client: Client, asked: devices_pb2.Device, limit_s: float, output: Output) -> devices_pb2.Device:
    """The device once a check that began after this one was asked for has ended. Raises TimedOut."""
    until = time.monotonic() + limit_s
    with Follower(quiet=output.as_json) as tell:
        while (found := client.device(asked.device_id)).last_check.check_id == asked.last_check.check_id:
            tell(f"waiting for {found.name} to be checked", None)
            left = until - time.monotonic()
            if left <= 0:
                raise TimedOut(
                    f"{found.name} was not checked within {duration(limit_s)}; `fleetfit devices show {found.name}` tells what "
                    "it is doing"
                )
            time.sleep(min(1.0, left))
    return found


@app.command()
def clear(
    device: Device,
    forget_history: Annotated[
        bool,
        typer.Option(
            "--forget-history", help="What it does from now on is its new normal: earlier checks count no more."
        ),
    ] = False,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Give a device that was set aside work again."""
    with connect(server) as client:
        _tell(Output(as_json), client.clear(device, forget_history=forget_history), "takes work again")


@app.command()
def hours(
    device: Annotated[
        str, typer.Argument(metavar="DEVICE_OR_LABEL", help="A device, a label, or all.", show_default=False)
    ],
    windows: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="HOURS...", help="Such as 22:00-06:00 or 'sat,sun 08:00-20:00 Europe/Berlin'; UTC unless told."
        ),
    ] = None,
    always: Annotated[bool, typer.Option("--always", help="Take all hours away: work at any time.")] = False,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Say when a device may be given work; what it holds when they end it finishes. A label means those that bear it now."""
    if bool(windows) == always:
        raise typer.BadParameter("give hours, or --always for any time")
    output = Output(as_json)
    with connect(server) as client:
        changed = client.set_hours(device, windows or [])
    if as_json:
        output.json({"devices": [_plain(one) for one in changed]})
        return
    when = f"takes work {', '.join(windows)}" if windows else "takes work at any time"
    for one in changed:
        output.say(f"{one.name} {when}" + ("" if one.within_hours else " (not now)"))


@app.command()
def profiles(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="One profile, in full.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """List the kinds of devices that are declared here, or show one. No server is asked."""
    from fleetfit.client.tables.profiles import profile_facts, profiles_table
    from fleetfit.device_profiles.loader import load_profiles

    output = Output(as_json)
    known = {each: profile.model_dump(mode="json") for each, profile in load_profiles().items()}
    if not name:
        if as_json:
            output.json({"profiles": list(known.values())})
        output.show(profiles_table(list(known.values())))
        return
    if name not in known:
        raise NotFound(f"there is no device profile '{name}'; there are {', '.join(known)}", field="name")
    if as_json:
        output.json({"profile": known[name]})
    output.show(profile_facts(known[name]))


def _plain(device: devices_pb2.Device) -> dict[str, Any]:
    """A device for `--json`: its profile as an object, where it was asked for alone."""
    plain = to_plain(device)
    text = plain.pop("profile_json")
    return {**plain, "profile_facts": json.loads(text) if text else None}


def _tell(output: Output, device: devices_pb2.Device, what: str) -> None:
    if output.as_json:
        output.json({"device": _plain(device)})
    else:
        output.say(f"{device.name} {what}")


def reachable_address(client: Client) -> tuple[str, bool]:
    """The server's address as a device needs it, and whether it is good on this machine only."""
    host, port = split_address(client.address)
    if client.credential.listens_everywhere and host in LOOPBACK:
        found = _own_address()
        return f"{found or host}:{port}", found is None
    return client.address, host in LOOPBACK


def _own_address() -> str | None:
    """The address of this machine on the network it reaches others by; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # TEST-NET-1 of RFC 5737: routed like any address elsewhere, owned by nobody.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return None
