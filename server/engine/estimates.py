"""What a plan costs: bytes for each device, and time. First guesses, replaced by what earlier work really took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final

from fleetfit.compress.export.registry import DEFAULT
from fleetfit.core.durations import duration
from fleetfit.proto.v1 import jobs_pb2
from fleetfit.server.engine.planning import (
    PlannedCandidate,
    PlannedData,
    PlannedDevice,
    PlannedModel,
    expected_compress_s,
    expected_size_bytes,
)
from fleetfit.server.engine.progress import LOWER_S, PROFILE_S, Pace

# Six fresh processes that load two builds and the parts, and call them in turn.
_CHAIN_S: Final = 15.0
_METRIC_MACS_PER_S: Final = 2e10


def plan_message(
    candidates: Sequence[PlannedCandidate],
    model: PlannedModel,
    data: PlannedData | None,
    made: Collection[str],
    pace: Pace,
    notes: Sequence[str] = (),
    *,
    sustained_s: float = 0.0,
    scaling_s: float = 0.0,
    device_samples: int = 0,
    profile: bool = False,
) -> jobs_pb2.Plan:
    """The plan as the protocol has it. `made` are the keys of the variants that exist already; `notes` come first.

    `device_samples` are the most that devices get of a split, 0 for all of it. `sustained_s` comes on top of what a measurement
    usually takes; `scaling_s` is the most that the curves of one build take, and `profile` says whether operators are timed too.
    """
    aside = {c.device.id: c.device for c in candidates if c.device.set_aside}
    plan = jobs_pb2.Plan(notes=[*map(_aside, aside.values()), *notes])
    compress_s: dict[str, float] = {}
    measure_s: defaultdict[str, float] = defaultdict(float)
    # A device fetches each build once, and each split and part once.
    split_bytes = 0
    if data is not None:
        parts = (data.sizes.get(name, 0) * _given_share(data, name, device_samples) for name in ("validation", "test"))
        split_bytes = int(sum(parts))
    split_bytes += model.parts_bytes
    fetched: set[tuple[str, str]] = set()
    for candidate in candidates:
        size = expected_size_bytes(model, candidate.recipe)
        message = plan.candidates.add(
            device=candidate.device.name,
            recipe=candidate.recipe.name,
            runtime=candidate.runtime,
            expected_size_bytes=size,
            cached=candidate.variant_key in made,
            skip_reason=candidate.skip_reason,
            threads=candidate.threads,
            batch=candidate.batch,
        )
        if candidate.skip_reason:
            continue
        if (candidate.device.id, "") not in fetched:
            message.download_bytes += split_bytes
        build = f"{candidate.variant_key} {candidate.runtime}"
        if (candidate.device.id, build) not in fetched:
            message.download_bytes += size
        fetched |= {(candidate.device.id, ""), (candidate.device.id, build)}
        if not message.cached:
            compress_s[candidate.variant_key] = expected_compress_s(model, data, candidate.to_do)
            message.expected_compress_ms = int(compress_s[candidate.variant_key] * 1000)
        if candidate.runtime != DEFAULT:
            compress_s[build] = LOWER_S
            message.expected_compress_ms += int(LOWER_S * 1000)
        each_s = pace.measure_s + sustained_s + (_CHAIN_S if model.facts.parts else 0.0)
        each_s += _metric_s(model, data, device_samples)
        message.expected_measure_ms = int(each_s * 1000)
        # Nobody knows when one that is set aside gets work again; a note says so.
        if not candidate.device.set_aside:
            measure_s[candidate.device.snapshot.host_digest or candidate.device.id] += each_s
    for host in measure_s:
        # The chosen build and its original.
        measure_s[host] += 2 * (scaling_s + (PROFILE_S if profile else 0.0))
    if scaling_s:
        plan.notes.append(
            f"last, it is measured how the chosen build and its original scale, for at most {duration(scaling_s)} each on every "
            "device"
        )
    if profile:
        plan.notes.append(
            "last, the time of each operator of the chosen build and its original is taken by their runtime's profiler, where "
            "it has one"
        )
    total_s = sum(compress_s.values()) + max(measure_s.values(), default=0.0)
    plan.expected_total_ms = int(total_s * 1000)
    shared = len(candidates) - len({candidate.variant_key for candidate in candidates})
    if shared:
        plan.notes.append(
            f"{shared} candidates share a variant with another device, runtime or condition; each is made once"
        )
    if any(message.cached for message in plan.candidates):
        plan.notes.append("variants that exist from earlier jobs are not made again")
    if model.facts.notes:
        plan.notes.extend(model.facts.notes)
    return plan


def _aside(device: PlannedDevice) -> str:
    """That the job would wait for a device though it is there."""
    return (
        f"{device.name} is set aside ({device.set_aside}) and gets no work until it passes a health check or a person clears it: "
        f"`fleetfit devices show {device.name}`; what it would take is not in the time expected"
    )


def _count(data: PlannedData, split: str) -> int:
    return next((one.count for one in data.facts.splits if one.name == split), 0)


def _given_share(data: PlannedData, split: str, most: int) -> float:
    """The share of a split that devices get, where they get `most` samples of it; 0 is no limit."""
    count = _count(data, split)
    return most / count if 0 < most < count else 1.0


def _metric_s(model: PlannedModel, data: PlannedData | None, most: int) -> float:
    """A first guess of what the metric adds, on the samples of the validation split that devices get."""
    if data is None:
        return 0.0
    count = _count(data, "validation") * _given_share(data, "validation", most)
    return count * model.facts.macs / _METRIC_MACS_PER_S
