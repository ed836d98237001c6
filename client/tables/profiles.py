"""Tables of device profiles. They are read as plain values: a newer server's may hold more than this version knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.table import Table

from fleetfit.client.tables.plain_table import table

_UNITS: Final = {
    "cores": ("cores", 1.0, ""),
    "max_frequency_hz": ("clock", 1e9, " GHz at most"),
    "memory_bytes": ("memory", 1e9, " GB"),
    "memory_bandwidth_bytes_per_s": ("memory bandwidth", 1e9, " GB/s"),
    "int8_operations_per_s": ("int8", 1e12, " TOPS"),
    "power_watts": ("power", 1.0, " W"),
}


def profiles_table(profiles: Sequence[Mapping[str, Any]]) -> Table:
    """All kinds of devices, whether the agent runs on them, and what was seen running."""
    rows = [
        (one["name"], one["agent"]["status"], _seen(one), one["title"])
        for one in sorted(profiles, key=lambda one: str(one["name"]))
    ]
    return table((("PROFILE", ""), ("AGENT", ""), ("RUN", ""), ("WHAT IT IS", "")), rows)


def profile_facts(profile: Mapping[str, Any]) -> Table:
    """Everything that one profile declares, each figure with the words it rests on."""
    rows = [("title", profile["title"]), *profile_rows(profile)]
    for name, (word, factor, unit) in _UNITS.items():
        fact = profile["facts"].get(name) or {}
        if fact.get("value") is not None:
            source = fact["source"]
            said = f"{fact['value'] / factor:.4g}{unit}"
            rows.append((word, f'{said}: "{source["quote"]}", {source["url"]}, read {source["read"]}'))
    for source in profile["agent"].get("sources", ()):
        rows.append(("agent, source", f'"{source["quote"]}", {source["url"]}, read {source["read"]}'))
    rows.append(
        ("widths", f"multiples of {profile['round_to']}: {profile.get('round_to_reason') or 'no reason given'}")
    )
    rows.append(("recipes", ", ".join(profile["recipes"])))
    return table(((profile["name"], ""), ("", "")), rows)


def profile_rows(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a device's profile adds to the device's own facts; nothing where the server told none."""
    rows = []
    agent = profile.get("agent") or {}
    if agent:
        concluded = " (our own inference)" if agent.get("inference") and agent.get("status") != "unknown" else ""
        rows.append(("runs the agent", f"{agent.get('status')}: {agent.get('reason')}{concluded}"))
        if agent.get("oldest_image"):
            rows.append(("oldest image", agent["oldest_image"]))
    for runtime, native in (profile.get("native") or {}).items():
        rows.append((f"native, {runtime}", f"{', '.join(native['dtypes'])}: {native['by']}"))
    if profile.get("power_modes"):
        rows.append(("power modes", ", ".join(_mode(mode) for mode in profile["power_modes"])))
    conditions = profile.get("conditions") or {}
    if conditions:
        counts = "the warm figure counts" if conditions.get("sustained") else "the cool figure counts"
        rows.append(("measured", f"{counts}: {conditions.get('reason')}"))
    if profile:
        rows.append(("seen running", _seen(profile)))
    return [*rows, *(("note", note) for note in profile.get("notes") or ())]


def _mode(mode: Mapping[str, Any]) -> str:
    watts = mode.get("watts")
    return mode["name"] if watts is None else f"{mode['name']} ({watts:g} W)"


def _seen(profile: Mapping[str, Any]) -> str:
    runs = profile.get("runs") or {}
    words = [
        f"{runtime} {'proven on ' + run['date'] if run['kind'] == 'proven' else run['kind']}"
        for runtime, run in runs.items()
    ]
    return ", ".join(words) or "never run"
