"""Names for results: the same key means the same bytes, so the same work is never done twice."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fleetfit.compress.recipe import Recipe
from fleetfit.core.digests import key_of

# Distributions whose versions change results.
_NUMERIC = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "fleetfit")


@cache
def numeric_environment() -> dict[str, str]:
    """Versions and instruction set that results depend on, found without importing any of them."""
    found = {}
    for name in _NUMERIC:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    found["machine"] = platform.machine()
    flags: list[str] = []
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags = sorted(set(line.partition(":")[2].split()))
            break
    # Kernels are chosen by these; other flags do not change sums.
    found["vector"] = " ".join(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "asimd", "sve", "f16c")))
    return found


def variant_key(
    model_sha256: str, splits: dict[str, str], recipe: Recipe, *, metric: str, task: str, seed: int, threads: int
) -> str:
    """The key of a model after a recipe. `splits` are the digests of what compression may read; none without data."""
    return key_of(
        {
            "model": model_sha256,
            "splits": splits,
            "recipe": recipe.key_material(),
            "metric": metric,
            "task": task,
            "seed": seed,
            "threads": threads,
            "environment": numeric_environment(),
        }
    )


def build_key(variant: str, runtime: str, form: str) -> str:
    """The key of a variant lowered to a runtime's format. Portable builds do not depend on the device."""
    return key_of({"variant": variant, "runtime": runtime, "format": form})
