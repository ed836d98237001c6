"""The architectures of the breadth benchmark, by name."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

LIST = Path(__file__).with_name("architectures.toml")
_TOKENS = 12


@dataclass(frozen=True)
class Architecture:
    """A network to be made: where from, and of which shapes its inputs are, without the batch."""

    name: str
    source: str
    tags: tuple[str, ...]
    make: Callable[[], nn.Module] = field(repr=False)
    shapes: tuple[tuple[int, ...], ...]
    vocabulary: int = 0
    """Above 0 the inputs are that many different tokens."""

    def inputs(self, count: int, seed: int) -> tuple[torch.Tensor, ...]:
        """`count` random samples."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return tuple(torch.randint(2, self.vocabulary, (count, *s), generator=generator) for s in self.shapes)
        return tuple(torch.randn(count, *shape, generator=generator) for shape in self.shapes)

    def model(self, seed: int = 0) -> nn.Module:
        """The network with random weights, and batch-norm statistics that fit them."""
        torch.manual_seed(seed)
        model = self.make()
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms:
            # As after training: with the statistics of a new layer, activations fade or explode with depth.
            for norm in norms:
                norm.momentum = None
            model.train()
            with torch.no_grad():
                model(*self.inputs(4, seed + 1))
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model.eval()


def architectures() -> dict[str, Architecture]:
    """All of them, in the order of the list."""
    listed = tomllib.loads(LIST.read_text())
    found: list[Architecture] = []
    for size, names in listed["pytorchcv"].items():
        for path in names:
            module, _, factory = path.partition(".")
            found.append(
                Architecture(factory, "pytorchcv", (), _pytorchcv(module, factory), ((3, int(size), int(size)),))
            )
    for group in listed["torch"]:
        found += [_plain(name, tuple(group.get("tags", ()))) for name in group["names"]]
    found += [_transformer(entry, listed["transformers"]["defaults"]) for entry in listed["transformers"]["model"]]
    return {one.name: one for one in found}


def _pytorchcv(module: str, factory: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        # Not through the package's front door, which asks for torchvision.
        model: nn.Module = getattr(importlib.import_module(f"pytorchcv.models.{module}"), factory)()
        pool = getattr(getattr(model, "features", None), "final_pool", None)
        if isinstance(pool, nn.AvgPool2d) and pool.kernel_size in (7, 8, 10, 13) and "cifar" not in module:
            model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # type: ignore[union-attr]
        return model

    return make


def _plain(name: str, tags: tuple[str, ...]) -> Architecture:
    from benchmarks.plain_networks import NETWORKS

    make, shapes = NETWORKS[name]
    return Architecture(name, "torch", tags, make, shapes)


def _transformer(entry: dict[str, Any], defaults: dict[str, Any]) -> Architecture:
    options = entry.get("only") or {**defaults, **entry.get("options", {})}
    if "image" in entry:
        options = {key: value for key, value in options.items() if key not in ("vocab_size", "max_position_embeddings")}

    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, entry["config"])(**options, return_dict=True)
        return getattr(transformers, entry["name"])(config)  # type: ignore[no-any-return]

    if "image" in entry:
        return Architecture(
            entry["name"], "transformers", tuple(entry.get("tags", ())), make, ((3, entry["image"], entry["image"]),)
        )
    return Architecture(
        entry["name"], "transformers", tuple(entry.get("tags", ())), make, ((_TOKENS,),), int(options["vocab_size"])
    )
