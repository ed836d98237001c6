"""Which profile a device has, by what its agent found, and why in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from fleetfit.device_profiles.loader import load_profiles
from fleetfit.device_profiles.schema import USUAL_ROUND_TO, Agent, DeviceProfile, Rule

_RECIPES: Final = [
    *("int8-dynamic", "int8-static", "low-rank", "pruned", "pruned-int8", "pruned-low-rank", "small-and-quick")
]
GENERIC: Final = "generic"


@dataclass(frozen=True)
class DeviceFactsForMatching:
    """The part of a device's snapshot that profiles are matched by. Empty is unknown."""

    machine: str = ""
    device_tree_model: str = ""
    device_tree_compatible: tuple[str, ...] = ()
    cpu_model: str = ""
    cpu_flags: frozenset[str] = frozenset()
    arm_implementer: str = ""
    arm_part: str = ""
    product: str = ""
    cores: int = 0
    memory_bytes: int | None = None
    host_name: str = ""


def facts_of(snapshot: Any) -> DeviceFactsForMatching:
    """What profiles are matched by, out of a DeviceSnapshot of the protocol (which this package does not know)."""
    return DeviceFactsForMatching(
        machine=snapshot.machine,
        device_tree_model=snapshot.device_tree_model,
        device_tree_compatible=tuple(snapshot.device_tree_compatible),
        cpu_model=snapshot.processor.model,
        cpu_flags=frozenset(snapshot.processor.flags),
        arm_implementer=snapshot.processor.arm_implementer,
        arm_part=snapshot.processor.arm_part,
        product=snapshot.product,
        cores=snapshot.processor.usable_cores,
        memory_bytes=snapshot.memory_bytes if snapshot.HasField("memory_bytes") else None,
        host_name=snapshot.host_name,
    )


@dataclass(frozen=True)
class Match:
    """The profile of a device, and why it is this one."""

    profile: DeviceProfile
    reason: str


def match(facts: DeviceFactsForMatching, profiles: Mapping[str, DeviceProfile] | None = None) -> Match:
    """The profile with the highest priority among those that match; one made from the facts where none does."""
    known = load_profiles() if profiles is None else profiles
    hits = []
    for profile in known.values():
        reason = next((why for rule in profile.match if (why := _why(rule, facts))), "")
        if reason:
            hits.append((-profile.priority, profile.name, profile, reason))
    if not hits:
        return Match(_generic(facts), _why_generic(facts))
    _, _, profile, reason = min(hits, key=lambda hit: hit[:2])
    return Match(profile, reason)


def _why(rule: Rule, facts: DeviceFactsForMatching) -> str:
    """Why a rule holds, in a sentence; empty where it does not."""
    reasons = []
    if rule.machine and facts.machine not in rule.machine:
        return ""
    if rule.compatible:
        texts = facts.device_tree_compatible
        hit = next((text for text in texts if any(fnmatchcase(text, one) for one in rule.compatible)), None)
        if hit is None:
            return ""
        reasons.append(f"its device tree says it is compatible with '{hit}'")
    if rule.model:
        model = facts.device_tree_model.rstrip("\0")
        if not any(piece.lower() in model.lower() for piece in rule.model):
            return ""
        reasons.append(f"its device tree calls it '{model}'")
    if rule.arm_part:
        if facts.arm_implementer.lower() not in ("", "0x41") or facts.arm_part.lower() not in rule.arm_part:
            return ""
        reasons.append(f"its processor is Arm part {facts.arm_part}")
    if rule.product:
        if not any(piece.lower() in facts.product.lower() for piece in rule.product):
            return ""
        reasons.append(f"its firmware calls it '{facts.product}'")
    if rule.flags:
        if not set(rule.flags) <= facts.cpu_flags:
            return ""
        reasons.append(f"its processor has {', '.join(rule.flags)}")
    if rule.without_flags and set(rule.without_flags) & facts.cpu_flags:
        return ""
    return " and ".join(reasons) or f"it is {facts.machine}"


def _generic(facts: DeviceFactsForMatching) -> DeviceProfile:
    """What is known without a profile: nothing is declared, so every figure stays null."""
    useful = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    return DeviceProfile(
        name=GENERIC,
        title=facts.device_tree_model.rstrip("\0") or facts.cpu_model or facts.machine or "unknown device",
        instruction_sets=[flag for flag in useful if flag in facts.cpu_flags],
        runtimes=["onnxruntime"],
        recipes=list(_RECIPES),
        round_to=USUAL_ROUND_TO,
        agent=Agent(status="unknown", reason="it runs on this device, but no profile says from which image on"),
        notes=["no profile is declared for this kind of device; what its agent found is all that is known"],
    )


def _why_generic(facts: DeviceFactsForMatching) -> str:
    what = facts.device_tree_model.rstrip("\0") or facts.cpu_model or facts.machine or "a device that says nothing"
    return f"no profile is declared for {what}, so one was made from what its agent found"
