"""A/A controls: the original timed beside itself in the same run. What a device makes of no difference at all."""

from __future__ import annotations

from fleetfit.core.figures import number
from fleetfit.core.ties import is_even
from fleetfit.server.report.facts import CandidateFacts, DeviceFacts
from fleetfit.server.report.model import ControlReport, RatioFigure
from fleetfit.server.report.summary import Figure
from fleetfit.server.selection.ratios import is_a_tie
from fleetfit.server.selection.words import condition, interval

_NONE = (
    "No original was timed beside itself here, so nothing tells what this device makes of two equal builds: see the notes of "
    "the original."
)


def controls_of(device: DeviceFacts) -> list[ControlReport]:
    """The controls of a device, one for each condition that has one."""
    found = []
    for c in device.candidates:
        ratio = control_ratio(c)
        if ratio is None:
            continue
        found.append(
            ControlReport(
                runtime=c.runtime,
                threads=c.threads,
                batch=c.batch,
                ratio=RatioFigure(ratio=ratio.value, ci95=(ratio.low, ratio.high), tie=is_a_tie(ratio)),
                words=control_words(ratio),
            )
        )
    return found


def control_ratio(c: CandidateFacts) -> Figure | None:
    """The ratio of an original beside itself; None of everything else, and where it was not measured."""
    if c.role != "original" or c.beside_another_runtime or c.state != "measured" or c.validation is None:
        return None
    return c.validation.ratio


def control_words(ratio: Figure) -> str:
    """What a control says."""
    text = f"timed beside itself the original came out {number(ratio.value)} times as fast{interval(ratio)}"
    if ratio.low is None or ratio.high is None:
        return f"{text}, which one process cannot judge"
    if is_even(ratio.low, ratio.high):
        return f"{text}, as it should"
    return f"{text}: differences of this size mean nothing on this device"


def doubt_of(device: DeviceFacts) -> str:
    """Why the ratios of a device are doubtful, in words; empty where its controls came out even."""
    doubtful = [c for c in device.candidates if (ratio := control_ratio(c)) and not is_even(ratio.low, ratio.high)]
    if doubtful:
        several = len({(c.threads, c.batch) for c in device.candidates}) > 1
        said = []
        for c in doubtful:
            ratio = control_ratio(c)
            assert ratio is not None  # noqa: S101 - it was asked above
            where = f" with {condition(c.threads, c.batch)}" if several else ""
            said.append(f"{number(ratio.value)} times as fast{interval(ratio)}{where}")
        return (
            f"Doubtful: timed beside itself the original came out {' and '.join(said)}, and equal builds cannot differ. "
            "Trust no ratio that is not far beyond this; make the device quiet and measure again."
        )
    measured = any(c.role == "original" and c.state == "measured" for c in device.candidates)
    return _NONE if measured and not any(control_ratio(c) for c in device.candidates) else ""
