"""The documents' figures, written from `benchmarks/results/`: `python -m benchmarks.figures`."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import RESULTS

ROOT = Path(__file__).parent.parent
_SECTION = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def readme() -> str:
    """The section of the README."""
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
        *_beside_others(),
    ]
    return "\n".join(lines)


def _beside_others() -> list[str]:
    """The comparison with the peers in one sentence; nothing before the benchmark was run in full."""
    result = _result("peers")
    if result is None:
        return []
    figures, compared = result["figures"], result["figures"]["compared"]
    return [
        f"A residual network of {figures['parameters'] / 1e6:.1f} million parameters on Fashion-MNIST (`python -m "
        f"benchmarks.peers`), {figures['seeds']} compression seeds, {_machine(result['machine'])}: fleetfit's build is "
        f"{compared['times_as_fast']:.1f} times as fast as the original for {compared['drop']:.2f} points on test, "
        f"{compared['over_best_default']:.2f} times as fast as the best peer at its defaults ({compared['best_default']}), and "
        f"{compared['over_expert']:.2f} times as what an expert reaches by hand with them. "
        "[All of them](docs/techniques/composition.md#beside-other-tools).",
        "",
    ]


def _published_table() -> list[str]:
    figures = json.loads((RESULTS / "published_table.json").read_text())["figures"]
    lines = [
        "A 784-512-512-256-10 network on Fashion-MNIST, judged with PyTorch (`python -m benchmarks.published_table`): the "
        "gentlest cut of the sweep that removes at least 75 %, with retraining 88 %; activation pruning at the published "
        f"λ = 0.4. Mean of {len(figures['runs'])} training seeds, least to most; drops against the original given the same "
        "training:",
        "",
        "| criterion | fewer parameters | drop, points | on test |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in figures["summary"].items():
        cells = [_percent(found["fewer_parameters"]), _plain(found["drop"]), _plain(found["test_drop"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def pruning() -> str:
    """What cuts cost without retraining, and the published table."""
    runs = json.loads((RESULTS / "published_table.json").read_text())["figures"]["runs"]
    lines = [*_published_table(), "", "The sweeps behind it, before any retraining, on validation:", ""]
    for criterion, amount in (("activation", "threshold"), ("redundancy", "energy")):
        lines += [f"| {criterion}, `{amount}` | fewer parameters | drop, points |", "| --- | --- | --- |"]
        for points in zip(*(run["curves"][criterion] for run in runs), strict=True):
            fewer, drop = _spread(points, "fewer_parameters"), _spread(points, "drop")
            lines.append(f"| {points[0]['parameters'][amount]:g} | {_percent(fewer)} | {_plain(drop)} |")
        lines.append("")
    return "\n".join(lines)


def low_rank() -> str:
    """What every way of splitting keeps at every energy."""
    figures = json.loads((RESULTS / "low_rank_curve.json").read_text())["figures"]
    lines = [
        f"A convolutional network of {figures['parameters']} parameters on Fashion-MNIST ({figures['accuracy']:.2f} % on "
        "held-out images), split and **not** retrained (`python -m benchmarks.low_rank_curve`, one seed); `linear` splits "
        "only linear layers, the others only convolutions:",
        "",
        "| method | `energy` | fewer MACs | fewer parameters | drop, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, points in figures["energies"].items():
        for point in points:
            drop = figures["accuracy"] - point["accuracy"]
            cells = (f"{point['fewer_macs']:.1%}", f"{point['fewer_parameters']:.1%}", f"{drop:.2f}")
            lines.append(f"| {method} | {point['parameters_of_pass']['energy']:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def quantization() -> str:
    """Every kind of number of one network: bytes, accuracy, integers, latency."""
    result = json.loads((RESULTS / "quantization_table.json").read_text())
    figures, machine, settings = result["figures"], result["machine"], result["figures"]["settings"]
    lines = [
        f"A convolutional network of {figures['parameters']} parameters on Fashion-MNIST, one training seed "
        "(`python -m benchmarks.quantization_table`). Output error: the root mean square difference from `fp32` on validation "
        f"pictures, relative to how much the outputs vary. Drops are over the {figures['test_pictures']} test pictures, paired, "
        "against `fp32`, and in the last line against `fp32, trained on`, which had the same "
        f"{settings['tuning_epochs']:g} more epochs. Integers: how many of the convolutions and products run on them. Times as "
        f"fast as `fp32` in ONNX Runtime {machine['versions']['onnxruntime']}, one thread, a batch of one, "
        f"{_machine(machine)}; {settings['rounds']} rounds of blocks in turn. In brackets 95 % intervals:",
        "",
        "| build | kilobytes | output error | top-1, % | drop, points | integers | times as fast |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in figures["builds"]:
        error = f"{one['output_error']:.3f}" if "output_error" in one else ""
        first = one["build"] == "fp32"
        cells = [one["build"], f"{one['bytes'] / 1000:.0f}", error, f"{one['test_accuracy']:.2f}"]
        cells += ["" if first else _interval(one["drop"]), f"{one['integer_operators']} of {one['operators']}"]
        cells.append("" if first else _interval(one["times_as_fast"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _verdict(result), ""])


def distillation() -> str:
    """What every way of recovery gives back after how long."""
    result = json.loads((RESULTS / "distillation_curve.json").read_text())
    figures, runs = result["figures"], result["figures"]["runs"]
    ways = list(runs[0]["ways"])
    epochs = list(runs[0]["ways"][ways[0]])

    def cell(values: list[float]) -> str:
        return _plain({"mean": statistics.fmean(values), "least": min(values), "most": max(values)})

    def cut(name: str) -> str:
        return f"{statistics.fmean(run[name] for run in runs):.1%}"

    lines = [
        "A convolutional network on Fashion-MNIST with three quarters of the channels and neurons of every layer cut at once "
        f"({cut('fewer_parameters')} fewer parameters, {cut('fewer_macs')} fewer MACs), then trained for a few epochs of "
        f"{figures['trained_on']} pictures (`python -m benchmarks.distillation_curve`). Top-1 on the test pictures in per cent, "
        f"mean of {len(runs)} training seeds, least to most. The original reaches {cell([run['original'] for run in runs])}, the "
        f"cut network {cell([run['cut'] for run in runs])}, and with its batch norms measured anew, no more, "
        f"{cell([run['norms'] for run in runs])}. Without any label, {figures['regained_without_labels']:.0%} of what was lost "
        "comes back in the longest training:",
        "",
        f"| trained on | {' | '.join(f'{count} epochs' if count != '1' else '1 epoch' for count in epochs)} |",
        f"| {' | '.join(['---'] * (1 + len(epochs)))} |",
    ]
    lines += [
        f"| {way} | {' | '.join(cell([run['ways'][way][count] for run in runs]) for count in epochs)} |" for way in ways
    ]
    return "\n".join([*lines, "", _verdict(result), ""])


def norms() -> str:
    """What moved and measured batch norms give back; nothing before the benchmark was run in full."""
    result = _result("norms")
    if result is None:
        return ""
    figures, runs = result["figures"], result["figures"]["runs"]

    def cell(ratio: str, way: str) -> str:
        values = [run["cuts"][ratio][way] for run in runs]
        return _plain({"mean": statistics.fmean(values), "least": min(values), "most": max(values)})

    ways = ("left", "measured, like", "moved, like", "measured, unlike", "moved, unlike")
    lines = [
        "Small convolutional networks on Fashion-MNIST, cut by so much of every layer and not trained again (`python -m "
        f"benchmarks.norms`); statistics from {figures['samples']} pictures like those of the training, and from as many of two of "
        f"its ten classes. Top-1 on the test pictures in per cent, mean of {len(runs)} training seeds, least to most:",
        "",
        "| cut | left as they are | measured | moved | measured, two classes | moved, two classes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for ratio in runs[0]["cuts"]:
        lines.append(f"| {float(ratio):.0%} | {' | '.join(cell(ratio, way) for way in ways)} |")
    distilled = next(ratio for ratio, found in runs[0]["cuts"].items() if "distilled" in found)
    return "\n".join(
        [
            *lines,
            "",
            f"Distilled for one epoch after a cut of {float(distilled):.0%}: {cell(distilled, 'distilled')}, and "
            f"{cell(distilled, 'moved, distilled')} with norms moved before it. {_verdict(result)}",
            "",
        ]
    )


def _result(name: str) -> dict[str, Any] | None:
    """What a benchmark found; None before it was run in full."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def _verdict(result: dict[str, Any]) -> str:
    return f"The claim {'holds' if result['holds'] else '**does not hold**'}: {result['claim']}"


def _machine(machine: dict[str, Any]) -> str:
    sets = ", ".join(machine["instruction_sets"]) or "no vector extension that we look for"
    return f"{machine['processor']} ({sets})"


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def peers() -> list[str]:
    """What each peer reached beside us; nothing before the benchmark was run in full."""
    result = _result("peers")
    if result is None:
        return []
    figures, compared = result["figures"], result["figures"]["compared"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    lines = [
        "## Beside other tools",
        "",
        f"A residual network of {figures['parameters']} parameters on Fashion-MNIST ({figures['test_accuracy']:.2f} % on test), "
        f"compressed by fleetfit and by others with {figures['seeds']} seeds, {figures['tuning_epochs']} epochs of fine-tuning "
        "for each that trains (`python -m benchmarks.peers`). Medians, least to most; one thread, a batch of one, "
        f"{_machine(result['machine'])}; {versions}:",
        "",
        "| tool | times as fast | in its own runtime | kilobytes | drop on test, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in figures["summary"].items():
        own = _middle(found["times_as_fast_in_openvino"], 2) if "times_as_fast_in_openvino" in found else ""
        kilobytes = {part: value / 1000 for part, value in found["bytes"].items()}
        cells = [_middle(found["times_as_fast"], 2), own, _middle(kilobytes, 0), _middle(found["test_drop"], 2)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {one['entry']}, seed {one['seed']} | not run: {one['error']} | | | |" for one in figures["not_run"]]
    return [
        *lines,
        "",
        f"fleetfit is {compared['over_best_default']:.2f} times as fast as the best in ONNX Runtime at its defaults "
        f"({compared['best_default']}), {compared['over_best_default_in_any_runtime']:.2f} times as the best in any runtime "
        f"({compared['best_default_in_any_runtime']}), {compared['over_expert']:.2f} times as the expert, and has "
        f"{compared['bytes_over_smallest']:.2f} times the bytes of the smallest ({compared['smallest']}). "
        "fleetfit times its recipes' shapes first, and tries them on the validation split from the fastest on until one loses "
        "little enough, each with the same fine-tuning; the others have the one setting that `benchmarks/peers_builds.py` has.",
    ]


def pretrained() -> str:
    """How far every technique agrees with a pretrained original."""
    result = _result("pretrained")
    if result is None:
        return ""
    figures, machine = result["figures"], result["machine"]
    original = figures["variants"]["original"]
    lines = [
        "## On a pretrained network",
        "",
        f"efficientnet_lite0 (ImageNet) as published, through every technique (`python -m benchmarks.pretrained`): the share of "
        f"{figures['crops']} crops of photographs with the same best class as the original, with its 95 % interval; calibrated and "
        f"recovered on {figures['crops_of_others']} crops of other photographs, without labels; ONNX Runtime "
        f"{machine['versions']['onnxruntime']} on {_machine(machine)}:",
        "",
        "| variant | same class | mean cosine of the logits | bytes | fewer MACs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in figures["variants"].items():
        low, high = found["ci95"]
        fewer = 1 - found["macs"] / original["macs"]
        cells = [f"{found['agreement']:.1%} ({low:.1%} to {high:.1%})", f"{found['cosine']:.4f}", str(found["bytes"])]
        lines.append(f"| {name} | {' | '.join([*cells, f'{fewer:.1%}'])} |")
    lines += [f"| {name} | not run | | | |" for name in figures["not_run"]]
    return "\n".join([*lines, "", _verdict(result), ""])


def composition() -> str:
    """The comparison with the peers."""
    return "\n".join([*peers(), ""])


def _middle(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f} to {found['most']:.{digits}f})"


def architectures() -> str:
    """Every architecture of the breadth benchmark, and what works with it."""
    result = json.loads((RESULTS / "breadth.json").read_text())
    stages = list(result["figures"]["stages"])
    each = result["each"]
    lines = [
        f"{len(each)} architectures (`python -m benchmarks.breadth`)"
        + (f"; {len(result['not_run'])} more were not run" if result["not_run"] else "")
        + f". The bar {'holds' if result['holds'] else 'does not hold'}: {result['claim']}.",
        "",
        f"| architecture | from | parameters | fewer MACs | int8 | {' | '.join(stages)} |",
        f"| {' | '.join(['---'] * (5 + len(stages)))} |",
    ]
    for one in each:
        int8 = ", ".join(mode for mode, text in one.get("int8", {}).items() if text == "ok")
        cells = [one["name"], one.get("source", ""), str(one.get("parameters", ""))]
        cells += [f"{1 - one['macs_left']:.0%}" if "macs_left" in one else "", int8]
        texts = [one["stages"].get(stage, "not run") for stage in stages]
        lines.append(f"| {' | '.join([*cells, *('yes' if t == 'ok' else t.split(':')[0] for t in texts)])} |")
    failed = [
        f"- {one['name']}, {stage}: {_one_line(text)}"
        for one in each
        for stage, text in one["stages"].items()
        if text.startswith(("refused", "wrong"))
    ]
    if failed:
        lines += ["", "What failed, with the reason:", "", *failed]
    return "\n".join([*lines, ""])


def _one_line(text: str) -> str:
    # The part in brackets is the library's own message.
    return " ".join(text.split(" [")[0].split()).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _spread(points: tuple[dict[str, Any], ...], name: str) -> dict[str, float]:
    values = [point[name] for point in points]
    return {"mean": statistics.fmean(values), "least": min(values), "most": max(values)}


def measurement() -> str:
    """What stopping at a precision costs in coverage."""
    figures = json.loads((RESULTS / "stopping.json").read_text())["figures"]
    lines = [
        f"{figures['experiments']} experiments for each spread (`python -m benchmarks.stopping`); a 95 % interval, stopped as "
        f"soon as it is within {100 * figures['precision']:g} %:",
        "",
        "| processes differ by | the interval holds the truth | processes | as narrow as asked |",
        "| --- | --- | --- | --- |",
    ]
    for spread, found in figures["spreads"].items():
        cells = (f"{found['covered']:.1%}", f"{found['mean_processes']:.1f}", f"{found['as_narrow_as_asked']:.0%}")
        lines.append(f"| {100 * float(spread):g} % | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def agreement() -> str:
    """The agent's clock beside others'; nothing before the benchmark was run in full."""
    result = _result("agreement")
    if result is None:
        return ""
    figures = result["figures"]
    loops, app = figures["onnxruntime"], figures["openvino"]
    lines = [
        f"`python -m benchmarks.agreement`, {_machine(result['machine'])}. Medians; in brackets the ratio's 95 % interval:",
        "",
        "| model, runtime | the other | agent, µs | the other, µs | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    names = {"tight": "tightest loop in Python", "native": "loop in C"}
    compared = [
        (f"{name}, ONNX Runtime", other, loops[name][kind], loops[name][kind][f"{kind}_ns"])
        for name in loops
        for kind, other in names.items()
    ]
    compared.append(("convolutions, OpenVINO", "its benchmark_app", app, app["app_ns"]))
    for name, other, found, took in compared:
        cells = (other, f"{found['ours_ns'] / 1000:.1f}", f"{took / 1000:.1f}", _interval(found["ratio"]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"The model that does nothing takes {loops['nothing']['native']['longer_by_ns'] / 1000:.1f} µs longer from Python than "
            f"from C: that is what a call costs there, and it is in every figure. {_verdict(result)}",
            "",
        ]
    )


def difference() -> str:
    """A small difference beside a noisy neighbour; nothing before both occasions were measured."""
    result = _result("difference")
    if result is None:
        return ""
    figures, naive = result["figures"], result["figures"]["naive"]
    rows = (
        ("builds that differ, called right", figures["called_right"], naive["called_right"], "different"),
        (
            "builds that differ, called the wrong way",
            figures["called_the_wrong_way"],
            naive["called_the_wrong_way"],
            "different",
        ),
        ("equal builds, called different", figures["equal_called_different"], naive["equal_called_different"], "equal"),
    )
    lines = [
        f"`python -m benchmarks.difference`, {_machine(result['machine'])}. Two chains of {figures['operators']['baseline']} and "
        f"{figures['operators']['candidate']} operators, about {figures['baseline_p50_ms']:.1f} ms long, while a seeded load works "
        f"and rests beside them; runs of {figures['median_seconds']:.0f} s on two occasions, "
        f"{figures['hours_between_begins']:.1f} hours from begin to begin; called at 99 % confidence:",
        "",
        "| | as agents measure | each build alone, Welch's test |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {what} | {ours} of {figures['runs'][kind]} | {theirs} of {naive['runs'][kind]} |"
        for what, ours, theirs, kind in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"The 95 % interval held the pooled ratio ({figures['pooled_ratio']['different']:.3f} and "
            f"{figures['pooled_ratio']['equal']:.3f}) in {figures['held_pooled']} of {figures['intervals']}. {_verdict(result)}",
            "",
        ]
    )


def roots() -> str:
    """The installer in clean systems; nothing before the benchmark was run in full."""
    result = _result("roots")
    if result is None:
        return ""
    lines = [
        "`sudo python -m benchmarks.roots`: clean x86_64 systems with python3 and libstdc++ alone, read-only but for one folder, "
        "in a network that holds the server only.",
        "",
        "| system | Python, glibc | install, s | a model measured there | again | uninstalled |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in result["figures"]["systems"]:
        again = "renewed" if one["again_renewed"] else "nothing to do"
        cells = (
            f"{one['python']}, {one['glibc']}",
            f"{one['install_seconds']:.0f}",
            f"{one['measured']}, {one['runtime']}",
            again,
        )
        lines.append(f"| {one['system']} | {' | '.join(cells)} | {len(one['left'])} files left |")
    return "\n".join([*lines, "", _verdict(result), ""])


def footprint() -> str:
    """What an agent at rest takes; nothing before the benchmark was run in full."""
    result = _result("footprint")
    if result is None:
        return ""
    figures = result["figures"]
    parts = {name: size for name, size in figures["installed_parts_mib"].items() if name not in ("all", "compiled")}
    largest = ", ".join(f"{name} {size:.0f}" for name, size in list(parts.items())[:4])
    return "\n".join(
        [
            f"An agent at rest (`python -m benchmarks.footprint`, watched for {figures['watched_s'] / 60:.0f} minutes after a "
            f"task, {_machine(result['machine'])}): {figures['resident_mib']:.1f} MiB resident ("
            f"{figures['proportional_mib']:.1f} MiB proportional; {figures['resident_just_installed_mib']:.1f} MiB where its files "
            f"have just been written and lie in the page cache in large pieces), {figures['share_of_a_core']:.3%} of a core "
            f"(the machine was {figures['machine_busy']:.0%} busy, mostly with other work). "
            f"What the installer makes without runtimes takes {figures['installed_mib']:.1f} MiB on the disk, of which "
            f"{figures['installed_parts_mib']['compiled']:.1f} MiB are Python's compiled files; the largest parts, in "
            f"MiB: {largest}. With ONNX Runtime it is {figures['installed_with_onnxruntime_mib']:.0f} MiB. {_verdict(result)}",
            "",
        ]
    )


SECTIONS: Final[dict[str, dict[str, Callable[[], str]]]] = {
    "README.md": {"demo": readme},
    "docs/techniques/pruning.md": {"pruning": pruning},
    "docs/techniques/low-rank.md": {"low-rank": low_rank},
    "docs/techniques/quantization.md": {"quantization": quantization, "pretrained": pretrained},
    "docs/techniques/distillation.md": {"distillation": distillation, "norms": norms},
    "docs/techniques/composition.md": {"peers": composition},
    "docs/architectures.md": {"breadth": architectures},
    "docs/measurement.md": {"stopping": measurement, "agreement": agreement, "difference": difference},
    "docs/devices/README.md": {"roots": roots, "footprint": footprint},
}
"""What stands between a document's marks, by the marks' name."""


def written(document: str) -> str:
    """The document with its sections as they should be."""
    wanted, met = SECTIONS[document], []

    def section(found: re.Match[str]) -> str:
        met.append(found[2])
        return found[1] + wanted[found[2]]() + found[3] if found[2] in wanted else found[0]

    text = _SECTION.sub(section, (ROOT / document).read_text())
    if sorted(met) != sorted(wanted):
        raise SystemExit(f"{document} has marks around the figures {sorted(met)}, and should have {sorted(wanted)}")
    return text


def _percent(found: dict[str, Any]) -> str:
    return f"{found['mean']:.1%} ({found['least']:.1%} to {found['most']:.1%})"


def _plain(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


if __name__ == "__main__":
    for name in SECTIONS:
        (ROOT / name).write_text(written(name))
