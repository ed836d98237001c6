"""What builds can be made for: ONNX Runtime, which compression builds for anyway, and what exporters are installed for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from fleetfit.compress.export.registry import DEFAULT, declared, known
from fleetfit.core.errors import FleetfitError
from fleetfit.server.engine.keys import build_key


@dataclass(frozen=True)
class Target:
    """A runtime that builds are made for. `missing` says what to do where they cannot be made here."""

    runtime: str
    format: str
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    quantized: frozenset[str] = frozenset()
    """The numbers of quantized recipes that builds are made of, as `Pass.numbers` says them."""

    def build_key(self, variant_key: str) -> str:
        """The name of a variant's build."""
        return build_key(variant_key, self.runtime, self.format, self.versions)


@cache
def targets() -> Mapping[str, Target]:
    """All of them by name, ONNX Runtime first; found without importing a runtime."""
    found = {DEFAULT: Target(DEFAULT, "onnx")}
    for name in known():
        if name == DEFAULT:
            continue
        try:
            exporter = declared(name)
        except FleetfitError as error:
            found[name] = Target(name, name, missing=error.message)
            continue
        versions, absent = {}, []
        for package in exporter.packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                absent.append(package)
        missing = f"install {' and '.join(absent)} there and start it again" if absent else ""
        found[name] = Target(name, exporter.format, versions, missing, exporter.quantized)
    return found
