"""The tables of docs/devices/README.md, written from the device profiles: `python -m benchmarks.devices`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fleetfit.device_profiles.loader import load_profiles
from fleetfit.device_profiles.schema import DeviceProfile

PAGE: Final = Path(__file__).parent.parent / "docs" / "devices" / "README.md"
_SECTION: Final = re.compile(r"(<!-- profiles -->\n).*?(<!-- end of profiles -->)", re.DOTALL)
_RUNTIMES: Final = ("onnxruntime", "openvino", "ncnn", "tensorrt")


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
    ran = [f"[{Path(run.by).name}](../../{run.by})" for run in profile.runs.values()]
    return f" ({', '.join([*links, *ran])})" if links or ran else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
