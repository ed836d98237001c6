"""`python -m fleetfit.server.report.render REPORT.json OUT.html`: a report as one page that needs nothing else.

No script, no font and no picture comes from elsewhere, or at all: the page may be mailed, kept, and opened offline.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from fleetfit.core.figures import number, size
from fleetfit.server.report.analyse import write
from fleetfit.server.report.model import LimitsReport, Report
from fleetfit.server.report.page import device_pages

_TEMPLATES: Final = Path(__file__).parent / "templates"


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        # Both are made here: charts escape what they are given, the style sheet is ours.
        trusted=Markup,  # noqa: S704
        size=lambda count: "" if count is None else size(count),
        grouped=lambda count: "" if count is None else f"{count:,}".replace(",", " "),
        figure=lambda value: "" if value is None else number(value, 4),
        plain=_plain,
        # No line ends between a figure and its unit.
        together=lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%").replace(" ms", "\N{NO-BREAK SPACE}ms"),
    )
    return environment.get_template("report.html").render(
        report=report,
        devices=device_pages(report),
        limits=limits_words(report.limits, parted=bool(report.parts)),
        created=_moment(report.created),
        style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )


def limits_words(limits: LimitsReport, *, parted: bool = False) -> list[str]:
    """The job's limits, each in a few words. `parted`: the model has parts that count end to end only."""
    words = []
    if limits.max_drop_points is not None:
        words.append(f"a loss of at most {limits.max_drop_points:g}")
    if limits.max_drop_percent is not None:
        words.append(f"a loss of at most {limits.max_drop_percent:g} % of the original's value")
    if limits.p95_ms is not None:
        words.append(f"p95{' of the model alone' if parted else ''} at most {limits.p95_ms:g} ms")
    if limits.p95_end_to_end_ms is not None:
        words.append(f"p95 end to end at most {limits.p95_end_to_end_ms:g} ms")
    if limits.max_peak_memory_bytes is not None:
        words.append(f"peak memory at most {size(limits.max_peak_memory_bytes)}")
    if limits.max_size_bytes is not None:
        words.append(f"size at most {size(limits.max_size_bytes)}")
    return words


def _moment(created: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        return ""
    return moment.astimezone(datetime.timezone.utc).strftime("%d %B %Y, %H:%M UTC")


def _plain(value: Any) -> str:
    """A value of a lineage or a condition, short."""
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_plain(one) for one in value)
    return str(value)


def main(arguments: Sequence[str]) -> int:
    """Render one report."""
    source, out = Path(arguments[0]), Path(arguments[1])
    write(render(Report.model_validate_json(source.read_text(encoding="utf-8"))), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
