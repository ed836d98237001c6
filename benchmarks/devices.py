"""The tables of docs/devices/README.md, written from the device profiles: `python -m benchmarks.devices`.

`--accept FILE` first takes what a file of `fleetfit selfproof` shows into the profile of its board, and keeps the file.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

from fleetfit.core.errors import FleetfitError
from fleetfit.device_profiles.loader import PROFILES, load_profiles, parse_profile
from fleetfit.device_profiles.matching import GENERIC, facts_of, match
from fleetfit.device_profiles.schema import DeviceProfile
from fleetfit.proto.selfproof import differences, unproven, unseal

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "devices" / "README.md"
_RUNS: Final = re.compile(r"^runs:\n(?:[ #].*\n|\n(?=[ #]))*", re.MULTILINE)
_SECTION: Final = re.compile(r"(<!-- profiles -->\n).*?(<!-- end of profiles -->)", re.DOTALL)
_RUNTIMES: Final = ("onnxruntime", "openvino", "ncnn", "tensorrt", "torch_tensorrt")


def written() -> str:
    """The page with its tables as they should be."""
    text, count = _SECTION.subn(lambda found: found[1] + tables() + found[2], PAGE.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{PAGE} has lost the marks around its tables")
    return text


def tables() -> str:
    """What stands between the page's marks."""
    profiles = sorted(load_profiles().values(), key=lambda profile: profile.name)
    runs = [[_cell(one.title), one.agent.status, *(_run(one, runtime) for runtime in _RUNTIMES)] for one in profiles]
    native = [[f"`{one.name}`", *(_native(one, runtime) for runtime in _RUNTIMES)] for one in profiles]
    how = [
        [
            f"`{one.name}`",
            _cell(one.agent.oldest_image or "none"),
            ", ".join(mode.name for mode in one.power_modes) or "-",
            "warm" if one.conditions.sustained else "cool",
            str(one.round_to),
        ]
        for one in profiles
    ]
    return "\n".join(
        [
            *("## What was seen running", "", *_table(["device", "agent", *_RUNTIMES], runs), ""),
            *("## Why the agent runs there, or does not", ""),
            *_reasons(profiles),
            *("", "## Number formats that the hardware has instructions or units for", ""),
            *(*_table(["profile", *_RUNTIMES], native), ""),
            *("## Images, power modes and conditions", ""),
            *(
                *_table(["profile", "oldest image", "power modes that are known", "figure that counts", "widths"], how),
                "",
            ),
        ]
    )


def _reasons(profiles: list[DeviceProfile]) -> list[str]:
    """One line for all profiles of which the same is said."""
    said: dict[str, list[str]] = {}
    for one in profiles:
        said.setdefault(f"{one.agent.status}: {one.agent.reason}{_basis(one)}.", []).append(f"`{one.name}`")
    return [f"- {', '.join(names)} - {text}" for text, names in said.items()]


def _table(heading: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)]


def _run(profile: DeviceProfile, runtime: str) -> str:
    return profile.ran(runtime) if runtime in profile.native or runtime in profile.runs else "-"


def _native(profile: DeviceProfile, runtime: str) -> str:
    native = profile.native.get(runtime)
    if native is None:
        return "-"
    return ", ".join(native.dtypes) + (f" ([source]({native.source.url}))" if native.source else " (inferred)")


def _basis(profile: DeviceProfile) -> str:
    links = [f"[{at}]({source.url})" for at, source in enumerate(profile.agent.sources, 1)]
    ran = [f"[{Path(by).name}](../../{by})" for by in dict.fromkeys(run.by for run in profile.runs.values())]
    return f" ({', '.join([*links, *ran])})" if links or ran else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def accept(file: Path, *, profiles: Path = PROFILES, root: Path = ROOT) -> list[str]:
    """Write what the file shows into its board's profile, and keep it in benchmarks/results/; what was done, in sentences.

    Ends with a sentence where it shows nothing. It proves integrity and no more: who accepts it vouches for where it is from.
    """
    try:
        proof = unseal(file.read_bytes())
    except FleetfitError as error:
        raise SystemExit(error.message) from error
    known = load_profiles(profiles)
    name = match(facts_of(proof.snapshot), known).profile.name
    if name == GENERIC:
        raise SystemExit("no profile is declared for this board; add one first (CONTRIBUTING.md)")
    if differ := differences(proof):
        raise SystemExit(f"its figures do not follow from its samples: {differ[0]}")
    missing = unproven(proof)
    good = [runtime for runtime, why in missing.items() if not why]
    if not good:
        raise SystemExit(f"it shows no runtime at work: {missing or 'none was there'}")
    date, emulated = proof.statement.made.date(), proof.statement.emulated
    by = f"benchmarks/results/run-{name}-{date.isoformat()}{'-emulated' if emulated else ''}.zip"
    path = profiles / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    before = parse_profile(text, source=path.name).runs
    runs = {runtime: (run.kind, run.date.isoformat(), run.by) for runtime, run in before.items()}
    for runtime in good:
        if not emulated or runs.get(runtime, ("",))[0] != "proven":
            runs[runtime] = ("emulated" if emulated else "proven", date.isoformat(), by)
    block = "runs:\n" + "".join(
        f"  {runtime}:\n    kind: {kind}\n    date: {day}\n    by: {record}\n"
        for runtime, (kind, day, record) in sorted(runs.items())
    )
    changed = _RUNS.sub(lambda _: block, text) if _RUNS.search(text) else text.rstrip("\n") + "\n" + block
    parse_profile(changed, source=path.name)
    (root / by).write_bytes(file.read_bytes())
    path.write_text(changed, encoding="utf-8")
    left = [f"{runtime} is left out: {why}" for runtime, why in missing.items() if why]
    code = proof.statement.code
    return [
        f"{name}: {', '.join(good)} {'emulated' if emulated else 'proven'} on {date}, by {by}",
        f"it was fleetfit {code.version}, commit {code.commit or 'unknown'}, files {code.files[:12]}",
        *left,
    ]


def main() -> None:
    """Accept files, if any, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--accept", type=Path, action="append", default=[], metavar="FILE")
    for file in parser.parse_args().accept:
        print("\n".join(accept(file)))
    PAGE.write_text(written(), encoding="utf-8")


if __name__ == "__main__":
    main()
