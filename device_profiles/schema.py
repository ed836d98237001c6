"""What a device profile says: the declared facts about a kind of device, each with the page it was read on."""

from __future__ import annotations

import datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# Kernels of x86 like vectors of 16 floats at most, those of Arm 4; 8 serves both well enough where nothing is known.
USUAL_ROUND_TO: Final = 8

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where a figure was read, when, and the words that it rests on."""

    url: Annotated[str, StringConstraints(pattern=r"^https://")]
    read: datetime.date
    quote: Annotated[str, StringConstraints(min_length=3, max_length=300)]


class Fact(_Strict):
    """One declared figure; null where no page was opened that gives it, and then without a source."""

    value: float | None
    source: Source | None = None

    @model_validator(mode="after")
    def _sourced(self) -> Fact:
        if (self.value is None) != (self.source is None):
            raise ValueError("a figure needs its source, and a source belongs to a figure; give both or neither")
        return self


_UNKNOWN = Fact(value=None)


class Facts(_Strict):
    """The declared figures. Units are in the names; bytes are decimal."""

    cores: Fact = _UNKNOWN
    max_frequency_hz: Fact = _UNKNOWN
    memory_bytes: Fact = _UNKNOWN
    memory_bandwidth_bytes_per_s: Fact = _UNKNOWN
    int8_operations_per_s: Fact = _UNKNOWN
    power_watts: Fact = _UNKNOWN


class Rule(_Strict):
    """When a device is of this kind: every condition that is given must hold, each by one of its words.

    `compatible` are strings of the device tree, `*` standing for anything; `model` are pieces of its model line, in any
    case; `arm_part` are part numbers of Arm's own cores; `flags` must all be there and `without_flags` must not.
    """

    machine: list[str] = []
    compatible: list[str] = []
    model: list[str] = []
    arm_part: list[str] = []
    flags: list[str] = []
    without_flags: list[str] = []

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if not any((self.machine, self.compatible, self.model, self.arm_part, self.flags)):
            raise ValueError("a rule without a condition would match every device; give at least one")
        return self


class DeviceProfile(_Strict):
    """One kind of device."""

    name: Name
    title: str
    match: list[Rule] = []
    """Any of these rules is enough."""
    priority: int = 0
    """Where several profiles match, the one with the highest counts."""
    facts: Facts = Facts()
    instruction_sets: list[str] = []
    """What integer arithmetic can use, in the kernel's words."""
    runtimes: Annotated[list[str], Field(min_length=1)]
    """Default runtimes, the preferred first."""
    recipes: Annotated[list[str], Field(min_length=1)]
    """The default set of `compress`, by name."""
    round_to: Annotated[int, Field(ge=1, le=64)] = USUAL_ROUND_TO
    """Channel counts that this kind's kernels like: multiples of this. Recipes that give no `round_to` are fitted with it."""
    notes: list[str] = []
