"""What the demo shows, read off its report: how small each device's variants are, and what that cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# The published figures that fleetfit starts from: 72 % smaller for 0.62 points of accuracy.
FEWER_PARAMETERS: Final = 0.72
FEWER_BYTES: Final = 0.85
MOST_DROP: Final = 0.62


@dataclass(frozen=True)
class Claim:
    """One candidate of one device against what is asked of it. Drops are in the metric's unit, shares from 0 to 1."""

    device: str
    kind: str
    """`unquantized`: fewest parameters without integers. `selected`: what was chosen."""
    recipe: str | None
    fewer_parameters: float | None = None
    fewer_bytes: float | None = None
    drop: float | None = None
    test_drop: float | None = None
    ratio: float | None = None
    ratio_ci95: tuple[float, float] | None = None
    holds: bool = False


def claims(report: Mapping[str, Any]) -> list[Claim]:
    """Two claims for each device: the best candidate without quantization, and the selected variant."""
    found = []
    for device in report["devices"]:
        original = next((c for c in device["candidates"] if c["role"] == "original"), None)
        made = [_claim(device["device"], original, c) for c in device["candidates"] if c["role"] == "recipe"]
        # Among several the one that holds with the least loss.
        plain = [c for c, raw in zip(made, _recipes(device), strict=True) if not _quantized(raw) and _small(c)]
        plain.sort(key=lambda c: (not c.holds, c.drop if c.drop is not None else 1e9))
        found.append(plain[0] if plain else Claim(device["device"], "unquantized", None))
        chosen = [
            _claim(device["device"], original, c, selected=True) for c in device["candidates"] if c.get("selected")
        ]
        found.append(chosen[0] if chosen else Claim(device["device"], "selected", None))
    return found


def sentence(claim: Claim) -> str:
    """One claim in words."""
    what = "without quantization" if claim.kind == "unquantized" else "selected"
    if claim.recipe is None:
        return f"{claim.device}, {what}: no candidate"
    drop, test, ratio, bounds = claim.drop, claim.test_drop, claim.ratio, claim.ratio_ci95
    words = [
        f"{_percent(claim.fewer_parameters)} fewer parameters",
        f"{_percent(claim.fewer_bytes)} fewer bytes",
        f"loses {drop:.2f} points" if drop is not None else "loss not measured",
    ]
    if test is not None:
        words.append(f"{test:.2f} on the test split")
    if ratio is not None and bounds is not None:
        words.append(f"{ratio:.2f} times as fast ({bounds[0]:.2f} to {bounds[1]:.2f})")
    return f"{claim.device}, {what}: {claim.recipe}: {', '.join(words)}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f} %"


def _recipes(device: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [c for c in device["candidates"] if c["role"] == "recipe"]


def _quantized(candidate: Mapping[str, Any]) -> bool:
    return bool(candidate["total_operators"])


def _small(claim: Claim) -> bool:
    return (claim.fewer_parameters or 0.0) >= FEWER_PARAMETERS


def _claim(device: str, original: Mapping[str, Any] | None, c: Mapping[str, Any], *, selected: bool = False) -> Claim:
    def fewer(key: str) -> float | None:
        return 1 - c[key] / original[key] if original and original[key] and c[key] is not None else None

    drop = c["drop"]["value"] if c["drop"] else None
    test_drop = c["test_drop"]["value"] if c["test_drop"] else None
    speed = c["speedup"]["original"]
    size_holds = (
        (fewer("size_bytes") or 0) >= FEWER_BYTES if selected else (fewer("parameters") or 0) >= FEWER_PARAMETERS
    )
    lost = [drop, test_drop] if selected else [drop]
    return Claim(
        device=device,
        kind="selected" if selected else "unquantized",
        recipe=c["recipe"],
        fewer_parameters=fewer("parameters"),
        fewer_bytes=fewer("size_bytes"),
        drop=drop,
        test_drop=test_drop,
        ratio=speed["ratio"] if speed else None,
        ratio_ci95=(speed["ci95"][0], speed["ci95"][1]) if speed else None,
        holds=bool(
            size_holds and all(one is not None and one <= MOST_DROP for one in lost) and speed and speed["ci95"][0] > 1
        ),
    )
