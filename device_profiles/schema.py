"""What a device profile says: the declared facts about a kind of device, each with the page it was read on."""

from __future__ import annotations

import datetime
from typing import Annotated, Final, Literal

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
    case; `arm_part` are part numbers of Arm's own cores; `product` are pieces of what the firmware calls the machine, in
    any case; `flags` must all be there and `without_flags` must not. `sources` are where these words were read; none
    where they are our own inference.
    """

    machine: list[str] = []
    compatible: list[str] = []
    model: list[str] = []
    arm_part: list[str] = []
    product: list[str] = []
    flags: list[str] = []
    without_flags: list[str] = []
    sources: list[Source] = []

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if not any((self.machine, self.compatible, self.model, self.arm_part, self.product, self.flags)):
            raise ValueError("a rule without a condition would match every device; give at least one")
        return self


AgentStatus = Literal["tested", "expected", "container", "not possible", "unknown"]
Dtype = Literal["fp32", "fp16", "bf16", "int8", "fp8", "fp4"]


class Agent(_Strict):
    """Whether the agent runs on this kind of device.

    `tested` was seen running; `expected` meets what agent and runtimes ask for, but nobody has tried; `container` needs a
    newer user space than the newest image of the maker has; `unknown` is only for a device that has no profile.
    """

    status: AgentStatus
    reason: Annotated[str, StringConstraints(min_length=10)]
    oldest_image: str | None = None
    """The oldest image of an operating system on which it can run; null where there is none."""
    inference: bool = True
    """The reason is concluded by us from `sources`; no page says it in these words."""
    sources: list[Source] = []


class Native(_Strict):
    """The number formats that a runtime has instructions or units for on this hardware; others it emulates or converts.

    Whether a format is quicker there is measured, never concluded from this.
    """

    dtypes: Annotated[list[Dtype], Field(min_length=1)]
    by: Annotated[str, StringConstraints(min_length=3)]
    """The instructions or units."""
    source: Source | None = None
    """None: our own inference."""


class PowerMode(_Strict):
    """A mode as `nvpmodel` names it. `watts` is null where the page gives no budget."""

    name: str
    watts: float | None
    source: Source


class Conditions(_Strict):
    """What measurements are made under unless a job says otherwise. Null: as the device is found."""

    power_mode: str | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    sustained: bool
    """The warm figure counts, not the one of the first cool seconds."""
    reason: Annotated[str, StringConstraints(min_length=10)]


class Run(_Strict):
    """A runtime was seen running on this kind of device: `emulated`, or `proven` on real hardware, and what shows it."""

    kind: Literal["emulated", "proven"]
    date: datetime.date
    by: Annotated[str, StringConstraints(min_length=3)]


_NOBODY_TRIED = Agent(status="unknown", reason="no profile says whether the agent runs on this kind of device")
_AS_FOUND = Conditions(
    sustained=True, reason="how the device is cooled is not known, so the warm figure is the safe one"
)


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
    round_to_reason: str = ""
    agent: Agent = _NOBODY_TRIED
    native: dict[str, Native] = {}
    """By runtime."""
    power_modes: list[PowerMode] = []
    conditions: Conditions = _AS_FOUND
    runs: dict[str, Run] = {}
    """By runtime; one that is not named was never run here."""
    notes: list[str] = []

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> DeviceProfile:
        if self.agent.status == "not possible" and self.runs:
            raise ValueError("the agent is said to be impossible here, and yet something ran; correct one of them")
        if self.agent.status == "tested" and not any(run.kind == "proven" for run in self.runs.values()):
            raise ValueError("'tested' needs a run that is proven; name it under 'runs'")
        names = [mode.name for mode in self.power_modes]
        if self.conditions.power_mode is not None and self.conditions.power_mode not in names:
            raise ValueError(
                f"conditions.power_mode is none of the power modes ({', '.join(names) or 'there are none'})"
            )
        return self

    def ran(self, runtime: str) -> str:
        """`never run`, `emulated` or `proven on DATE`."""
        run = self.runs.get(runtime)
        if run is None:
            return "never run"
        return f"proven on {run.date.isoformat()}" if run.kind == "proven" else "emulated"
