"""The figures of a model with parts, from its raw samples: end to end, each part alone, and against the original's chain.

As in `proto/figures.py`: what a server prints, and anybody can compute again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fleetfit.core.statistics_latency import Floats, ratio_interval
from fleetfit.core.statistics_student import Interval
from fleetfit.proto.figures import milliseconds
from fleetfit.proto.v1 import measurement_pb2

Link = measurement_pb2.ChainLink
PART_LINKS: Final[Mapping[str, Link.ValueType]] = {
    "pre": Link.CHAIN_LINK_PRE,
    "core": Link.CHAIN_LINK_CORE,
    "post": Link.CHAIN_LINK_POST,
}


def chain_samples(raw: measurement_pb2.MeasurementResult, link: Link.ValueType = Link.CHAIN_LINK_WHOLE) -> list[Floats]:
    """A link's samples in milliseconds, one array for each fresh process; the whole chain's where none is named."""
    processes = [milliseconds([ns for b in run.blocks if b.link == link for ns in b.latency_ns]) for run in raw.chains]
    return [samples for samples in processes if len(samples)]


def chain_ratio(raw: measurement_pb2.MeasurementResult) -> Interval | None:
    """How many times as fast as the original's chain this one is, over the fresh processes that hold both; None without any."""
    pairs, candidate_first = [], []
    for run in raw.chains:
        ours, theirs = (
            [milliseconds(b.latency_ns) for b in run.blocks if b.link == link and len(b.latency_ns)]
            for link in (Link.CHAIN_LINK_WHOLE, Link.CHAIN_LINK_BASELINE)
        )
        # One more of ours at the end has no neighbour, and only the percentiles need it.
        if theirs and len(theirs) <= len(ours) <= len(theirs) + 1:
            pairs.append((ours, theirs))
            candidate_first.append(run.candidate_loaded_first)
    return ratio_interval(pairs, candidate_first) if pairs else None
