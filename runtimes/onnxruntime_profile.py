"""What ONNX Runtime's profile of a run says: which operator ran by which provider, and for how long.

The file is a list of events of Chrome's tracing format, each on a line of its own; those of operators have the category `Node`, a
name that ends with `_kernel_time`, a duration in microseconds, and `op_name` and `provider`
(onnxruntime.ai/docs/performance/tune-performance). Behind those of a call comes `model_run` of the category `Session`
(InferenceSession::Run in onnxruntime/core/session/inference_session.cc).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.operators import OperatorRun

_SUFFIX: Final = "_kernel_time"
_CALL: Final = "model_run"
_PROVIDER: Final = "ExecutionProvider"
# Its types are called as in C++; all others have NumPy's names (int64, uint8, float16, bfloat16, ...).
_FORMATS: Final = {"float": "float32", "double": "float64"}
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
    number_format: str = ""


def events_of(lines: Iterable[str]) -> Iterator[Event | None]:
    """The operators' events of a profile, in the order they ran; None behind those of each call.

    Line by line: a profile may have more of them than there is memory for. Raises InvalidModel for what is none.
    """
    try:
        for event in _objects(lines):
            if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
                about = event["args"]
                name = event["name"].removesuffix(_SUFFIX)
                provider, microseconds = about.get("provider", ""), int(event["dur"])
                yield Event(name, about["op_name"], provider, microseconds, _number_format(about))
            elif event.get("cat") == "Session" and event["name"] == _CALL:
                yield None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidModel(
            "ONNX Runtime's profile of the build cannot be read, so nobody knows where its operators ran; update fleetfit"
        ) from error


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    said = False
    for line in lines:
        part = line.strip().removesuffix(",")
        said = said or bool(part)
        if part not in ("", "[", "]"):
            found = json.loads(part)
            yield from found if isinstance(found, list) else [found]
    if not said:
        raise ValueError("there is nothing in it")


def _number_format(about: Mapping[str, Any]) -> str:
    """That of the first input, which is what an operator computes on; of the output where it has no inputs."""
    for side in ("input_type_shape", "output_type_shape"):
        for one in about.get(side) or ():
            for name in one:
                return _FORMATS.get(str(name), str(name))
    return ""


def calls_in(lines: Iterable[str]) -> list[list[OperatorRun]]:
    """The operators of each call, in the order of the calls. Raises InvalidModel for what is no profile."""
    calls: list[list[OperatorRun]] = [[]]
    for event in events_of(lines):
        if event is None:
            calls.append([])
        else:
            placed = event.provider.removesuffix(_PROVIDER)
            ns = event.microseconds * 1000
            calls[-1].append(OperatorRun(event.name, event.operator, placed, event.number_format, ns))
    # What follows the last call's end belongs to none.
    return calls[:-1]


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
    for event in events_of(text.splitlines()):
        if event is not None and event.operator not in _COPIES:
            counts.setdefault(event.provider, Counter())[event.operator] += 1
    return Placement(first, {provider: dict(kinds) for provider, kinds in counts.items()})
