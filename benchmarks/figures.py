"""The README's figures, written from `benchmarks/results/`: `python -m benchmarks.figures`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS

README = Path(__file__).parent.parent / "README.md"
_SECTION = re.compile(r"(<!-- figures: .*? -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def section() -> str:
    """What stands between the README's marks."""
    result = json.loads((RESULTS / "demo_seeds.json").read_text())
    figures, machine = result["figures"], result["machine"]
    seconds = [run["seconds"] for run in figures["runs"]]
    lines = [
        "## Figures",
        "",
        f"The demo with {len(seconds)} seeds (`python -m benchmarks.demo_seeds`): each claim, device and seed is one try, and "
        f"{figures['held']} of {figures['of']} hold. Mean, and least to most, over the seeds, as measured by the agents:",
        "",
        "| device, variant | fewer parameters | fewer bytes | drop, points | on test | times as fast |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in figures["summary"].items():
        cells = [_percent(found["fewer_parameters"]), _percent(found["fewer_bytes"])]
        cells += [_plain(found["drop"]), _plain(found["test_drop"]), _plain(found["ratio"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sets = ", ".join(machine["instruction_sets"]) or "no vector extension that we look for"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines += [
        "",
        "Drops are of accuracy on the validation split, and on the test split where that was read, against the original given "
        f"the same training. The machine: {machine['cores']} "
        f"cores of {machine['processor']} ({sets}), {machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']}; {versions}. "
        f"A run took {min(seconds) / 60:.1f} to {max(seconds) / 60:.1f} minutes. "
        "Everything: [benchmarks/results/demo_seeds.json](benchmarks/results/demo_seeds.json).",
        "",
        *_published_table(),
        "",
    ]
    return "\n".join(lines)


def _published_table() -> list[str]:
    figures = json.loads((RESULTS / "published_table.json").read_text())["figures"]
    lines = [
        "A 784-512-512-256-10 network on Fashion-MNIST, cut and **not** retrained, evaluated with PyTorch on the server's side "
        f"(`python -m benchmarks.published_table`): the largest cut within 0.62 points on validation, mean of "
        f"{len(figures['runs'])} seeds, least to most:",
        "",
        "| criterion | fewer parameters | drop, points | on test |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in figures["summary"].items():
        cells = [_percent(found["fewer_parameters"]), _plain(found["drop"]), _plain(found["test_drop"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def written(readme: str) -> str:
    """The README with the section as it should be."""
    text, count = _SECTION.subn(lambda found: found[1] + section() + found[2], readme)
    if count != 1:
        raise SystemExit("README.md has lost the marks around its figures")
    return text


def _percent(found: dict[str, Any]) -> str:
    return f"{found['mean']:.1%} ({found['least']:.1%} to {found['most']:.1%})"


def _plain(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
