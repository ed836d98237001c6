"""Of a device's candidates, those whose scaling is worth its time: the chosen one and its original."""

from __future__ import annotations

from fleetfit.server.report.facts import DeviceFacts
from fleetfit.server.selection.choose import Selection


def finalists(device: DeviceFacts, choice: Selection) -> set[str]:
    """Ids: the chosen candidate, or what came nearest, and the original in its runtime under its condition.

    Where there is neither, as in a benchmark, the originals, each runtime's under the first of its conditions: a curve goes
    over threads and batches by itself.
    """
    measured = [c for c in device.candidates if c.state == "measured"]
    originals = [c for c in measured if c.role == "original"]
    best = next((c for c in measured if c.id == (choice.selected or choice.closest)), None)
    if best is None:
        by_runtime: dict[str, str] = {}
        for c in originals:
            by_runtime.setdefault(c.runtime, c.id)
        return set(by_runtime.values())
    own = (best.runtime, best.threads, best.batch)
    return {best.id} | {c.id for c in originals if (c.runtime, c.threads, c.batch) == own}
