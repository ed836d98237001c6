"""What ONNX Runtime's profile of a run says: which operator ran by which provider, and for how long.

The file is a list of events of Chrome's tracing format; those of operators have the category `Node`, a name that ends with
`_kernel_time`, a duration in microseconds, and `op_name` and `provider` (onnxruntime.ai/docs/performance/tune-performance).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fleetfit.core.errors import InvalidModel

_SUFFIX: Final = "_kernel_time"
# Copies between memories are what placing costs, not operators of the build.
_COPIES: Final = ("MemcpyFromHost", "MemcpyToHost")
_NAMED: Final = 4


@dataclass(frozen=True)
class Event:
    """One run of one operator."""

    name: str
    operator: str
    provider: str
    microseconds: int


def events_of(text: str) -> Iterator[Event]:
    """The operators' events of a profile, in the order they ran. Raises InvalidModel for what is none."""
    try:
        found: list[dict[str, Any]] = json.loads(text)
        for event in found:
            if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
                about = event["args"]
                name = event["name"].removesuffix(_SUFFIX)
                yield Event(name, about["op_name"], about.get("provider", ""), int(event["dur"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(
            "ONNX Runtime's profile of the build cannot be read, so nobody knows where its operators ran; update fleetfit"
        ) from error


@dataclass(frozen=True)
class Placement:
    """How many operators of each kind ran by each provider; `first` is the one that was asked for."""

    first: str
    counts: Mapping[str, Mapping[str, int]]

    def count(self, provider: str) -> int:
        """How many operators ran by it."""
        return sum(self.counts.get(provider, {}).values())

    def told(self, titles: Mapping[str, str]) -> str:
        """All but those of the first provider, in words."""
        said = []
        for provider, kinds in self.counts.items():
            if provider != self.first:
                most = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
                some = ", ".join(most[:_NAMED]) + (", ..." if len(most) > _NAMED else "")
                said.append(f"{self.count(provider)} by {titles.get(provider, provider)} ({some})")
        return " and ".join(said) or "none"

    def notes(self, titles: Mapping[str, str]) -> Sequence[str]:
        """What does not run where it was asked to; nothing where all does."""
        others = sum(self.count(provider) for provider in self.counts if provider != self.first)
        if not others:
            return ()
        total = others + self.count(self.first)
        # What TensorRT takes are parts of the graph, each of which it makes one operator.
        return (
            f"of {total} operators that ONNX Runtime is left with {others} do not run by "
            f"{titles.get(self.first, self.first)}: {self.told(titles)}",
        )

    def to_json(self) -> str:
        """To be kept."""
        return json.dumps({"first": self.first, "counts": self.counts})

    @classmethod
    def from_json(cls, text: str) -> Placement:
        """What was kept."""
        return cls(**json.loads(text))


def placement_of(text: str, *, first: str) -> Placement:
    """Which operators ran where, from a profile of one run."""
    counts: dict[str, Counter[str]] = {}
    for event in events_of(text):
        if event.operator not in _COPIES:
            counts.setdefault(event.provider, Counter())[event.operator] += 1
    return Placement(first, {provider: dict(kinds) for provider, kinds in counts.items()})
