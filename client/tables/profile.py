"""The time of each operator, as people read it in a terminal: the largest ones, side by side where two builds are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fleetfit.client.tables.words import significant

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN: Final = 10
_NAME: Final = 24
_LONG_NAME: Final = 38
_CAVEAT: Final = (
    "By the runtime's own profiler, in a process of its own after everything else. The profiler slows what it looks at, and what "
    "happens between operators is in none of them: these times do not add up to the latency."
)


def profile_parts(device: Mapping[str, Any]) -> Iterator[RenderableType]:
    """What a device's candidates show of it; nothing where nobody asked."""
    found = [c for c in device.get("candidates") or [] if c.get("profile")]
    if not found:
        return
    found.sort(key=lambda c: not c.get("selected"))
    timed = [c for c in found if c["profile"].get("operators")]
    several = len({c.get("runtime") for c in found}) > 1
    yield Text("Where the time goes:", style="bold")
    if len(timed) == 2 and not several:
        yield _beside(timed)
    else:
        for candidate in timed:
            yield Text(_name(candidate, several=several), style="bold")
            yield _alone(candidate["profile"])
    for candidate in found:
        yield Padding(Text(f"- {_name(candidate, several=several)}: {_words(candidate)}", style="dim"), (0, 0, 0, 2))
    for note in dict.fromkeys(note for c in found for note in c["profile"].get("notes") or []):
        yield Padding(Text(f"- {note}", style="dim"), (0, 0, 0, 2))
    if timed:
        yield Text(_CAVEAT, style="dim")
    yield Text()


def _name(candidate: Mapping[str, Any], *, several: bool) -> str:
    return str(candidate.get("recipe", "")) + (f" in {candidate.get('runtime')}" if several else "")


def _words(candidate: Mapping[str, Any]) -> str:
    profile = candidate["profile"]
    if not profile.get("operators"):
        return f"not timed: {profile.get('not_offered_because') or 'the runtime told nothing'}"
    p50 = (candidate.get("latency_ms") or {}).get("p50")
    beside = f" (p50 without it {significant(p50)} ms)" if p50 else ""
    count = profile["count"]
    doubt = f"; measured on a {profile['trust']} device" if profile.get("trust") not in ("clean", None) else ""
    return (
        f"{count} operator{'' if count == 1 else 's'} in {significant(profile['operators_ms'])} ms of "
        f"{significant(profile['call_ms'])} ms a call with the profiler on{beside}, {profile['calls']} calls{doubt}"
    )


def _beside(two: Sequence[Mapping[str, Any]]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    columns = [_shown(c["profile"]) for c in two]
    for candidate in two:
        mark = "* " if candidate.get("selected") else ""
        made.add_column(Text(mark + str(candidate.get("recipe", ""))), overflow="fold", width=_NAME)
        made.add_column(Text("MS"), justify="right")
        made.add_column(Text("SHARE"), justify="right")
    for at in range(max(map(len, columns))):
        cells: list[Text] = []
        for column in columns:
            if at >= len(column):
                cells += [Text()] * 3
                continue
            kind, name, *figures = column[at]
            cells += [Text.assemble(kind, ("\n" + _tail(name, _NAME), "dim") if name else ""), *map(Text, figures)]
        made.add_row(*cells)
    return made


def _alone(profile: Mapping[str, Any]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column(Text("OPERATOR"), overflow="fold", max_width=_NAME)
    made.add_column(Text("NAME"), overflow="fold", max_width=_LONG_NAME)
    made.add_column(Text("MS"), justify="right")
    made.add_column(Text("SHARE"), justify="right")
    for kind, name, ms, share in _shown(profile):
        made.add_row(Text(kind), Text(_tail(name, _LONG_NAME), style="dim"), Text(ms), Text(share))
    return made


def _shown(profile: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The largest operators and the sum of the rest: what it is, its name, milliseconds, share."""
    operators = profile["operators"]
    places = {one.get("placed") for one in operators}
    made = []
    for one in operators[:_SHOWN]:
        about = [
            one.get("operator") or "",
            one.get("number_format") or "",
            one.get("placed") if len(places) > 1 else "",
        ]
        kind, name = " ".join(part for part in about if part), str(one.get("name") or "")
        made.append(
            (kind or _tail(name, _LONG_NAME), name if kind else "", significant(one["ms"]), _percent(one["share"]))
        )
    rest = profile["count"] - len(made)
    if rest > 0:
        ms = max(profile["operators_ms"] - sum(one["ms"] for one in operators[:_SHOWN]), 0.0)
        made.append(
            (f"{rest} other{'' if rest == 1 else 's'}", "", significant(ms), _percent(ms / profile["operators_ms"]))
        )
    return made


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _tail(name: str, width: int) -> str:
    """The end of a long name: paths begin alike."""
    return name if len(name) <= width else "…" + name[1 - width :]
