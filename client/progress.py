"""How far a piece of work is, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Final

from fleetfit.client.output import console
from fleetfit.client.tables.words import duration

# What is over sooner needs no bar.
_SHOW_AFTER_S: Final = 1.0
_LINE_EVERY_S: Final = 10.0


class Follower:
    """Shows one activity after the other. Call it with the activity, the fraction done and the seconds left (or None).

    May be called from any thread. With `quiet` nothing is shown.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._activity = ""
        self._activity_began = 0.0
        self._last_line = (0.0, "")
        self._bar: Any = None
        self._bar_task: Any = None
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def __call__(self, activity: str, fraction: float | None, remaining_s: float | None = None) -> None:
        """Show the activity, the fraction done and the seconds left, each None where it is not known."""
        if self._quiet:
            return
        with self._lock:
            now = time.monotonic()
            if activity != self._activity:
                self._activity, self._activity_began = activity, now
            if remaining_s is None and fraction is not None and fraction > 0.05:
                remaining_s = (now - self._activity_began) * (1 - fraction) / fraction
            # Work of unknown length is told of once, at its begin; of other work there will be more calls.
            due = fraction is None or now - self._activity_began >= _SHOW_AFTER_S
            if self._terminal and (due or self._bar is not None):
                self._draw(activity, fraction, remaining_s)
            elif due and not self._terminal:
                self._write(activity, fraction, remaining_s, now)

    def note(self, sentence: str) -> None:
        """A line above the bar."""
        if self._quiet:
            return
        with self._lock:
            if self._bar is not None:
                self._bar.console.print(sentence, markup=False, highlight=False)
            else:
                print(sentence, file=sys.stderr, flush=True)

    def _draw(self, activity: str, fraction: float | None, remaining_s: float | None) -> None:
        if self._bar is None:
            self._bar = _make_bar()
            self._bar_task = self._bar.add_task(activity, total=None, left="")
            self._bar.start()
        left = f"{duration(remaining_s)} left" if remaining_s is not None else ""
        self._bar.update(
            self._bar_task,
            description=activity[:40],
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            left=left,
        )

    def _write(self, activity: str, fraction: float | None, remaining_s: float | None, now: float) -> None:
        last, said = self._last_line
        if activity == said and now - last < _LINE_EVERY_S:
            return
        self._last_line = (now, activity)
        done = f": {fraction:.0%}" if fraction is not None else ""
        left = f", {duration(remaining_s)} left" if remaining_s is not None else ""
        print(f"{activity}{done}{left}", file=sys.stderr, flush=True)


def _make_bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=console(error=True),
        transient=True,
    )
