"""Low-rank factorization of a model: which layers can be split, in which ways, and how far each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import fx, nn

from fleetfit.compress.factorization.factors import Layer, OutputSplit, PatchSplit, Site, Split
from fleetfit.compress.factorization.moments import Moments, moments_of
from fleetfit.compress.factorization.ranks import Choice, Options, OutOfReach, allot, cheapest
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.graph.batches import spread_rows
from fleetfit.compress.passes.base import PassContext, PassReport
from fleetfit.compress.structure.walk import shapes_of, shared_modules
from fleetfit.core.errors import InvalidRecipe

if TYPE_CHECKING:
    from fleetfit.compress.passes.low_rank import LowRank

# A covariance of this width takes 200 MB.
_WIDEST: Final = 5000
_KINDS: Final = {"linear": "linear layer", "convolution": "convolution", "all": "linear layer or convolution"}


@dataclass
class _Plan:
    """A layer with its own settings, the ways to split it, all their ranks, and which of those save enough."""

    site: Site
    settings: LowRank
    ways: list[Split]
    options: Options

    def __post_init__(self) -> None:
        self.savings = self.options.saving(self.site.macs, self.site.parameters)
        self.worth = (self.savings > 0) & (self.savings >= self.settings.least_saving)


def factorize_layers(model: LayeredModel, settings: LowRank, context: PassContext) -> PassReport:
    """Split the layers of `model` for which a chain of thinner ones costs less; the work of `LowRank`.

    Raises:
        InvalidRecipe: There is no such layer, all are skipped, or the budget is out of reach.
        InvalidData: What flows through a layer is not finite.
    """
    data = context.training_data("low_rank")
    sites, notes = _sites(model, settings.layers)
    if not sites:
        others = "" if settings.layers == "all" else ", or let it split all layers"
        raise InvalidRecipe(f"low_rank finds no {_KINDS[settings.layers]} in this model; leave the step out{others}")
    settings.check_patterns(sites)
    own = {name: found for name in sites if (found := settings.for_layer(name)) is not None}
    if not own:
        raise InvalidRecipe("low_rank skips every layer that it could split in this model; skip fewer")
    ways = {name: _ways(sites[name], step) for name, step in own.items()}
    notes.extend(
        f"{name} is tried by channel only: a patch of it has {sites[name].patch} numbers, more than {_WIDEST}"
        for name, step in own.items()
        if ways[name] == ["channel"] and sites[name].patch > _WIDEST and step.method != "channel"
    )
    outputs = {name: sites[name].layer for name in own if ways[name] and not _reads_patches(sites[name], ways[name])}
    inputs = {name: sites[name].layer for name in own if ways[name] and name not in outputs}
    made, read = moments_of(
        model,
        outputs,
        inputs,
        spread_rows(data, settings.samples, context.seed),
        lambda done: context.report(0.6 * done, "looking at what flows through the layers"),
    )
    plans = []
    for at, (name, step) in enumerate(own.items()):
        context.report(0.6 + 0.4 * at / len(own), "factorizing the layers")
        splits = _splits(sites[name], ways[name], made.pop(name, None), read.pop(name, None))
        if splits:
            options = Options.joined([split.options(step.multiple) for split in splits])
            plans.append(_Plan(sites[name], step, splits, options))
        else:
            notes.append(f"{name} stays whole: {'no data reach it' if ways[name] else 'it is too wide to look at'}")
    if settings.fewer_macs is None and settings.fewer_parameters is None:
        chosen = [_by_layer(plan) for plan in plans]
    else:
        chosen = _by_budget(model, plans, settings)
    for plan, (choice, why) in zip(plans, chosen, strict=True):
        if choice is None:
            notes.append(f"{plan.site.name} stays whole: {why}")
        else:
            split = plan.ways[choice.way]
            _replace(model, plan.site, split.layers(choice.ranks))
            notes.append(f"{plan.site.name}: {_told(plan.site, split, choice)}")
            if f"{plan.site.name}.weight" in model.sparse:
                model.sparse.discard(f"{plan.site.name}.weight")
                notes.append(f"{plan.site.name}: the single zeros that pruning had set are gone with the weight")
    model.module.graph.lint()
    model.module.recompile()
    context.report(1.0, "split the layers")
    return PassReport(notes=notes)


def _sites(model: LayeredModel, layers: str) -> tuple[dict[str, Site], list[str]]:
    """The layers that may be split, by name, in the order of the graph; and notes on those of this kind that cannot be."""
    shared, shapes = shared_modules(model.module), shapes_of(model)
    sites: dict[str, Site] = {}
    refused: dict[str, list[str]] = {}
    for node in model.module.graph.nodes:
        if node.op != "call_module":
            continue
        name, layer = str(node.target), model.module.get_submodule(str(node.target))
        kind = "linear" if type(layer) is nn.Linear else "convolution"
        if layers not in ("all", kind) or not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            continue
        why = _refusal(layer, name in shared)
        if why is not None or not isinstance(layer, Layer):
            refused.setdefault(why or "another kind of layer", []).append(name)
            continue
        site = sites.setdefault(name, Site(name, layer))
        site.add_call(shapes[node.args[0]], shapes[node], model.sample_batch())
    return sites, [_note_of_refusal(list(dict.fromkeys(names)), why) for why, names in refused.items()]


def _refusal(layer: nn.Module, shared: bool) -> str | None:
    if shared:
        return "weights shared with another layer"
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return "a transposed convolution"
    if isinstance(layer, nn.Conv3d):
        return "a convolution of volumes"
    if isinstance(layer, nn.modules.conv._ConvNd):
        if layer.groups != 1:
            return "a grouped convolution"
        if layer.padding_mode != "zeros":
            return "a convolution padded with other values than zero"
    return None


def _note_of_refusal(names: list[str], why: str) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'stays' if len(names) == 1 else 'stay'} whole: {why}"


def _ways(site: Site, settings: LowRank) -> list[str]:
    """The methods to try; none where every covariance would be too wide."""
    made, layer = len(site.layer.weight), site.layer
    if isinstance(layer, nn.Linear):
        return ["linear"] if min(made, site.patch) <= _WIDEST else []
    kernel = math.prod(layer.kernel_size)
    if kernel == 1 or (isinstance(layer, nn.Conv1d) and settings.method == "spatial"):
        wanted = ["channel"]
    elif settings.method != "best":
        wanted = [settings.method]
    else:
        wanted = ["channel", "tucker2", "spatial"] if isinstance(layer, nn.Conv2d) else ["channel", "tucker2"]
    if site.patch > _WIDEST:
        wanted = ["channel"]
    return wanted if made <= _WIDEST else []


def _reads_patches(site: Site, ways: list[str]) -> bool:
    return ways != ["channel"] and (ways != ["linear"] or len(site.layer.weight) > _WIDEST)


def _splits(site: Site, ways: list[str], made: Moments | None, read: Moments | None) -> list[Split]:
    if made is not None and made.count:
        return [OutputSplit(site, made.mean(), made.covariance())]
    if read is None or not read.count:
        return []
    return [OutputSplit.from_patches(site, read) if way == "channel" else PatchSplit(site, way, read) for way in ways]


def _by_layer(plan: _Plan) -> tuple[Choice | None, str]:
    """The cheapest ranks that do what is asked of this layer; none, and why, where they save too little."""
    settings, options = plan.settings, plan.options
    if settings.ratio is not None:
        wanted = np.zeros(2, np.int64)
        for at, largest in enumerate(plan.ways[0].largest()):
            rank = math.ceil(settings.ratio * largest)
            wanted[at] = min(largest, math.ceil(rank / settings.multiple) * settings.multiple)
        good = (options.ranks == wanted).all(1)
    else:
        energy = settings.energy if settings.energy is not None else 1 - (settings.error or 0.0) ** 2
        good = options.kept >= min(energy, options.kept.max())
    choice = cheapest(options, good, plan.worth)
    saving = min(1 - choice.macs / plan.site.macs, 1 - choice.parameters / plan.site.parameters)
    if saving > 0 and saving >= settings.least_saving:
        return choice, ""
    told = f"{_method(plan.ways[choice.way])}{_ranks(choice)} would "
    return None, told + (f"save only {saving:.0%} of its MACs or bytes" if saving > 0 else "cost more")


def _by_budget(model: LayeredModel, plans: list[_Plan], settings: LowRank) -> list[tuple[Choice | None, str]]:
    """The ranks that together remove the share of the model's cost that is asked, and lose least."""
    macs = settings.fewer_macs is not None
    cost, total = ("macs", model.macs()) if macs else ("parameters", model.parameters_count())
    share = (settings.fewer_macs if macs else settings.fewer_parameters) or 0.0
    options = {plan.site.name: plan.options.rows(plan.worth) for plan in plans}
    whole = {plan.site.name: float(getattr(plan.site, cost)) for plan in plans}
    try:
        chosen = allot(options, whole, cost, share * total)
    except OutOfReach as error:
        what = "multiply-accumulates" if macs else "parameters"
        raise InvalidRecipe(
            f"low_rank can remove at most {error.most / total:.1%} of this model's {what}, not {share:.1%}; ask for less, or "
            "let it split all layers",
            field="steps",
        ) from error
    return [(chosen.get(plan.site.name), "the others can spare more") for plan in plans]


def _told(site: Site, split: Split, choice: Choice) -> str:
    if isinstance(site.layer, nn.Linear):
        shape = f"{site.layer.in_features} x {site.layer.out_features}"
    else:
        kernel = " x ".join(map(str, site.layer.kernel_size))
        shape = f"{site.layer.in_channels} x {site.layer.out_channels} x {kernel}"
    return f"{shape} -> {_method(split)}{_ranks(choice)}, {choice.kept:.1%} of the variance kept"


def _method(split: Split) -> str:
    return "" if split.method == "linear" else f"{split.method}, "


def _ranks(choice: Choice) -> str:
    return ("rank " if len(choice.ranks) == 1 else "ranks ") + " and ".join(map(str, choice.ranks))


def _replace(model: LayeredModel, site: Site, chain: list[nn.Module]) -> None:
    """Put a chain of layers in the place of one, wherever it is called."""
    parent, _, last = site.name.rpartition(".")
    setattr(model.module.get_submodule(parent), last, nn.Sequential(*chain).train(site.layer.training))
    for node in [n for n in model.module.graph.nodes if n.op == "call_module" and n.target == site.name]:
        value: fx.Node = node.args[0]
        with model.module.graph.inserting_before(node):
            for at in range(len(chain)):
                value = model.module.graph.call_module(f"{site.name}.{at}", (value,))
        node.replace_all_uses_with(value)
        model.module.graph.erase_node(node)
