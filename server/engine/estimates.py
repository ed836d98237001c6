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
    PlannedModel,
    expected_compress_s,
    expected_size_bytes,
)
from fleetfit.server.engine.progress import LOWER_S, Pace

# Six fresh processes that load two builds and the parts, and call them in turn.
_CHAIN_S: Final = 15.0


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
) -> jobs_pb2.Plan:
    """The plan as the protocol has it. `made` are the keys of the variants that exist already; `notes` come first.

    `sustained_s` comes on top of what a measurement usually takes; `scaling_s` is the most that the curves of one build take.
    """
    plan = jobs_pb2.Plan(notes=notes)
    compress_s: dict[str, float] = {}
    measure_s: defaultdict[str, float] = defaultdict(float)
    # A device fetches each build once, and each split and part once.
    split_bytes = 0 if data is None else sum(data.sizes.get(name, 0) for name in ("validation", "test"))
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
        message.expected_measure_ms = int(each_s * 1000)
        measure_s[candidate.device.snapshot.host_digest or candidate.device.id] += each_s
    for host in measure_s:
        # The chosen build and its original.
        measure_s[host] += 2 * scaling_s
    if scaling_s:
        plan.notes.append(
            f"last, it is measured how the chosen build and its original scale, for at most {duration(scaling_s)} each on every "
            "device"
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
