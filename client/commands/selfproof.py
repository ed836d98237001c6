"""`fleetfit selfproof`: what a device can show of itself without a server, in one signed file; and what such a file shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fleetfit.client.commands.options import AsJson
from fleetfit.client.output import Output
from fleetfit.client.progress import Follower
from fleetfit.client.tables.words import size
from fleetfit.core.errors import ChildFailed, InvalidInput, UsageError
from fleetfit.proto.v1 import snapshot_pb2

_INTEGRITY: Final = (
    "The signature shows that nothing was changed since the file was made. It does not show who made it, or that what it says "
    "is true."
)


def selfproof(
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Else selfproof-BOARD-DATE.zip here.", show_default=False),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Look at such a file instead of making one.", show_default=False),
    ] = None,
    runtime: Annotated[
        list[str], typer.Option(metavar="NAME", help="Check this runtime only; may be given again. Else all there are.")
    ] = [],  # noqa: B006 - typer reads it
    threads: Annotated[int, typer.Option(min=0, help="Threads that inference may use; 0 is all cores.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Measure for seconds only; the figures say little.")] = False,
    emulated: Annotated[bool, typer.Option(help="Say that this device is emulated; its timings mean nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check and measure this device without a server, and write what was found into one signed file that may be sent in."""
    output = Output(as_json)
    if verify is not None:
        if out is not None or runtime or threads or quick or emulated:
            raise UsageError("--verify only reads a file; leave the other options out", field="verify")
        facts = examine(verify)
    else:
        file = _make(out, runtime, threads, "quick" if quick else "standard", emulated)
        facts = examine(file)
    if as_json:
        output.json(facts)
    for line in _lines(facts):
        output.say(line)
    if verify is None:
        output.say(
            f"written to {facts['file']} ({size(facts['size_bytes'])}); unzip it and read it before you send it: "
            "docs/selfproof.md says what is in it and what is left out"
        )
    if not facts["holds"]:
        raise typer.Exit(1)


def examine(file: Path) -> dict[str, Any]:
    """What a file shows, as JSON. Raises FleetfitError where it is no self-proof or was changed."""
    from fleetfit.core.package import code_digest
    from fleetfit.proto.selfproof import differences, is_same, unproven, unseal

    content = file.read_bytes()
    proof = unseal(content)
    profile, because = _profile(proof.snapshot)
    statement = proof.statement
    differ, missing = differences(proof), unproven(proof)
    # One that was left out, or that no build is shipped for, breaks nothing.
    checked = [missing[one.name] for one in statement.runtimes if one.available and one.contract]
    return {
        "file": str(file),
        "size_bytes": len(content),
        "holds": bool(checked) and not differ and not any(checked),
        "key": proof.fingerprint,
        "made": statement.made.isoformat(),
        "profile": profile,
        "because": because,
        "emulated": statement.emulated,
        "code": statement.code.model_dump() | {"is_this": statement.code.files == code_digest()},
        "board": statement.board,
        "condition": statement.condition,
        "threads": statement.threads,
        "method": statement.method,
        "differences": differ,
        "runtimes": [
            {
                "name": one.name,
                "version": one.version,
                "available": one.available,
                "proven": missing.get(one.name) == "",
                "why_not": missing.get(one.name, one.reason),
                "checks": len(one.contract),
                "figures": one.figures,
                "same_is_same": is_same(one.figures) if one.figures else None,
            }
            for one in statement.runtimes
        ],
        "says": _INTEGRITY,
    }


def _profile(snapshot: snapshot_pb2.DeviceSnapshot) -> tuple[str | None, str]:
    """The name of the profile that the board matches, and why; no name on a device, which has no profiles."""
    if find_spec("fleetfit.device_profiles") is None:
        return None, "profiles are where the server is: look at the file there to see which one this board matches"
    from fleetfit.device_profiles.matching import facts_of, match

    matched = match(facts_of(snapshot))
    return matched.profile.name, matched.reason


def _make(out: Path | None, runtimes: list[str], threads: int, method: str, emulated: bool) -> Path:
    folder = (out.parent if out is not None else Path()).absolute()
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}; make it, or name another file with -o", field="output")
    # Beside where it will lie, so that it can take its name in one step.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".selfproof-") as beside, Follower() as told:
        made = Path(beside) / "made.zip"
        command = [sys.executable, "-m", "fleetfit.agent.selfproof", str(made), "--method", method]
        command += [*(word for name in runtimes for word in ("--runtime", name))]
        command += [*(["--threads", str(threads)] if threads else []), *(["--emulated"] if emulated else [])]
        _run(command, told)
        if out is None:
            facts = examine(made)
            out = Path(f"selfproof-{facts['profile'] or _in_a_name(_called(facts))}-{facts['made'][:10]}.zip")
        made.replace(out)
    return out


def _run(command: list[str], told: Follower) -> None:
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None  # noqa: S101 - asked for above
        for line in child.stdout:
            said = json.loads(line)
            if "refused" in said:
                raise InvalidInput(str(said["refused"]), field="runtime")
            told(str(said["activity"]), float(said["fraction"]))
        errors = child.stderr.read()
    if child.returncode:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1][:300]
        hint = "`fleetfit agent doctor` says what it lacks"
        raise ChildFailed(f"the device could not be checked ({last}); {hint}", outcome="failed")


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    code = facts["code"]
    emulated = " (emulated: its timings mean nothing)" if facts["emulated"] else ""
    yield f"{_called(facts)}{emulated}"
    yield f"profile {facts['profile'] or 'not looked for'}: {facts['because']}"
    known = "the same code as here" if code["is_this"] else "other code than here"
    commit = f", commit {code['commit']}" if code["commit"] else ""
    yield f"made {facts['made']} by fleetfit {code['version']}{commit} ({known})"
    condition = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts["condition"].items())
    yield f"condition: {facts['threads']} threads{', ' if condition else ''}{condition}"
    for one in facts["runtimes"]:
        if not one["available"] or not one["checks"]:
            yield f"  -   {one['name']}: {one['why_not']}"
            continue
        yield f"  {'ok ' if one['proven'] else 'NOT'} {one['name']} {one['version']}: {_measured(one)}"
    for sentence in facts["differences"]:
        yield f"  NOT {sentence}"
    if not facts["differences"]:
        yield "every figure comes out of the raw samples again"
    yield f"signed with key {facts['key'][:16]}. {_INTEGRITY}"


def _called(facts: Mapping[str, Any]) -> str:
    board = facts["board"]
    return str(board["model"] or board["processor"] or board["machine"])


def _in_a_name(text: str) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _measured(one: Mapping[str, Any]) -> str:
    if not one["proven"]:
        return str(one["why_not"])
    figures = one["figures"]
    said = [f"{one['checks']} checks of its contract hold", f"p50 {figures['p50_ms']['value']:.3g} ms"]
    same = figures["same_build"]
    if same and same["low"] is not None:
        even = "as it should" if one["same_is_same"] else "which should be 1"
        said.append(f"beside itself {same['value']:.3f} times as fast [{same['low']:.3f}, {same['high']:.3f}], {even}")
    said += [*([] if figures["quiet"] else ["not quiet or cool"]), *(["throttled"] if figures["throttled"] else [])]
    return "; ".join(said)
