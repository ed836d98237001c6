"""The `fleetfit` command line: finds a subcommand, runs it, and turns every error into one sentence and an exit code.

Subcommands are entry points of the group `fleetfit.commands`, ours and third parties' alike, imported only when called:
`module:attribute` is a typer application or a function. This module imports nothing else of ours but the errors.

What a caller may rely on:

- Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
- An error is one sentence on standard error, never a traceback (`FLEETFIT_DEBUG=1` shows one).
- With `--json`, standard output holds JSON only; an error is there too, as `{"error": {"code", "message", "field"}}`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NoReturn

from fleetfit import __version__
from fleetfit.core.errors import FleetfitError, UnsupportedHere

GROUP: Final = "fleetfit.commands"
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
# An error of this code is wrong usage too: a value that only the command can judge.
_USAGE_CODE: Final = "USAGE"

# In the order of first use. Kept here because asking a command for its own summary would import it.
_SUMMARIES: Final = {
    "demo": "The whole job on this machine, with real data.",
    "server": "Run the server that compresses models and leads the devices.",
    "agent": "Work for a server on this device.",
    "devices": "Register devices, list them, label or pause them.",
    "models": "Check, push and list models.",
    "data": "Push and list datasets.",
    "bench": "Measure a model as it is on devices.",
    "compress": "Fit a model to devices: compress, measure, select.",
    "recipes": "List, check and explain recipes.",
    "jobs": "List, watch, cancel or resume jobs.",
    "report": "What was measured for a job, and what was chosen, and why.",
    "scorer": "Judge jobs by a metric of your own, on this machine.",
    "selfproof": "What this device can show of itself, in one signed file.",
    "pull": "Fetch the build that was chosen for a device.",
}
# Which extra brings what a command imports.
_EXTRAS: Final = {"server": "server", "demo": "server"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    as_json = "--json" in arguments
    try:
        code = _dispatch(list(arguments))
        sys.stdout.flush()
        return code
    except FleetfitError as error:
        _say(error.code, error.message, error.field, as_json)
        return USAGE if error.code == _USAGE_CODE else FAILED
    except KeyboardInterrupt:
        _say("INTERRUPTED", "interrupted", "", as_json)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would complain once more at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say("OS_ERROR", f"{where}{error.strerror or error}", "", as_json)
        return FAILED
    except Exception as error:  # noqa: BLE001 - a bug of ours or a plug-in's: still no traceback
        if os.environ.get("FLEETFIT_DEBUG"):
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        hint = "set FLEETFIT_DEBUG=1 to see where, and report it"
        _say("INTERNAL", f"this is a bug of fleetfit's ({what}); {hint}", "", as_json)
        return FAILED


def commands() -> dict[str, EntryPoint]:
    """The installed subcommands by name, ours first."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    ours = [name for name in _SUMMARIES if name in found]
    return {name: found[name] for name in [*ours, *sorted(set(found) - set(ours))]}


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    known = commands()
    if first in ("--help", "-h", "help"):
        if first == "help" and len(arguments) > 1:
            return _dispatch([arguments[1], "--help"])
        print(_help(known))
        return DONE if arguments else USAGE
    if first in ("--version", "-V"):
        print(json.dumps({"version": __version__}) if "--json" in arguments else f"fleetfit {__version__}")
        return DONE
    entry = known.get(first)
    if entry is None and first in _SUMMARIES:
        raise UnsupportedHere(
            f"the command '{first}' is not part of what a device is given; use it where the server is, or in an environment of "
            "your own (`pip install fleetfit`)"
        )
    if entry is None:
        near = difflib.get_close_matches(first, known, 1, cutoff=0.5)
        hint = f"did you mean 'fleetfit {near[0]}'?" if near else "`fleetfit --help` lists the commands"
        what = "option" if first.startswith("-") else "command"
        _say(_USAGE_CODE, f"there is no {what} '{first}'; {hint}", "", "--json" in arguments)
        return USAGE
    return _run_command(entry, arguments[1:])


def _run_command(entry: EntryPoint, arguments: list[str]) -> int:
    import typer

    # typer once used the package click and now carries a copy of its own: its public names lead to the right one.
    usage_error: Any = typer.BadParameter.__mro__[1]
    as_json = "--json" in arguments
    command = _load(entry)
    try:
        code = command.main(args=arguments, prog_name=f"fleetfit {entry.name}", standalone_mode=False)
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return USAGE
        _say(_USAGE_CODE, _usage_sentence(error), "", as_json, hint=_usage_hint(error, entry.name))
        return USAGE
    except typer.Abort:
        raise KeyboardInterrupt from None
    if code == INTERRUPTED:
        # Newer versions of typer answer an interrupt with this code, without a word.
        raise KeyboardInterrupt
    return code if isinstance(code, int) else DONE


def _load(entry: EntryPoint) -> Any:
    """The command object of an entry point. Raises UnsupportedHere where it cannot be imported."""
    import typer

    try:
        found = entry.load()
    except ImportError as error:
        extra = _EXTRAS.get(entry.name)
        cure = f'; install what it needs with `pip install "fleetfit[{extra}]"`' if extra else ""
        raise UnsupportedHere(f"the command '{entry.name}' cannot be imported here: {error}{cure}") from error
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    application = typer.Typer(add_completion=False, rich_markup_mode=None)
    application.command()(found)
    return typer.main.get_command(application)


def _usage_sentence(error: Any) -> str:
    text = " ".join(str(error.format_message()).split()).rstrip(".")
    # Its suggestion is a sentence of its own, and our hint follows it.
    text = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", text)
    return text[:1].lower() + text[1:] if text else "something is missing"


def _usage_hint(error: Any, name: str) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else f"fleetfit {name}"
    return f"`{path} --help` shows how it is used"


def _help(known: dict[str, EntryPoint]) -> str:
    width = max((len(name) for name in known), default=0)
    lines = [
        "fleetfit fits one trained model to every device of a fleet.",
        "",
        "Usage: fleetfit COMMAND ...",
        "",
        "Commands:",
    ]
    for name, entry in known.items():
        summary = _SUMMARIES.get(name)
        if summary is None:
            summary = f"From {entry.dist.name}." if entry.dist is not None else f"From {entry.module}."
        lines.append(f"  {name:<{width}}  {summary}")
    lines += [
        "",
        "`fleetfit COMMAND --help` shows a command's options; every command takes --json.",
        "The server is found by --server, FLEETFIT_SERVER (with FLEETFIT_TOKEN), or the",
        "credential that a server of this user on this machine has left.",
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    ]
    if not known.keys() >= _SUMMARIES.keys():
        lines += ["", "This is what a device is given; all other commands are where the server is."]
    return "\n".join(lines)


def _say(code: str, message: str, field: str, as_json: bool, *, hint: str = "") -> None:
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message, "field": field}}), flush=True)
    sentence = f"{message}; {hint}" if hint else message
    print(f"fleetfit: {sentence}", file=sys.stderr, flush=True)
