"""Where commands write: JSON or a table to standard output, everything else to standard error.

Colours and moving bars appear only on a terminal. Text that comes from elsewhere is never read as markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Output:
    """A command's output. With `as_json` standard output holds one JSON value per line and nothing else."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def json(self, value: Mapping[str, Any]) -> None:
        """One JSON object on a line of its own."""
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    def show(self, *parts: RenderableType) -> None:
        """Tables and sentences for people; nothing with `--json`."""
        if not self.as_json:
            screen = console()
            for part in parts:
                screen.print(part, markup=False, highlight=False)

    def say(self, sentence: str) -> None:
        """A sentence for people; nothing with `--json`. Long ones are left to the terminal to wrap, so they can be copied."""
        if not self.as_json:
            sys.stdout.write(sentence + "\n")
            sys.stdout.flush()


def console(*, error: bool = False) -> Console:
    """A console on standard output, or on standard error."""
    from rich.console import Console

    return Console(file=sys.stderr if error else sys.stdout, markup=False, highlight=False, emoji=False)
