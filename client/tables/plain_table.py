"""Tables of plain text. All fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import JustifyMethod

_STATE_STYLES = {
    "online": "green",
    "done": "green",
    "accepted": "green",
    "measured": "green",
    "failed": "red",
    "refused": "red",
    "running": "cyan",
    "offline": "dim",
    "cancelled": "dim",
    "skipped": "dim",
}


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain text. A column is its heading and `left` or `right`; a cell that is a known state gets its colour."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for heading, side in columns:
        justify: JustifyMethod = "right" if side == "right" else "left"
        made.add_column(Text(heading), justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in row))
    return made
