"""Names for results: the same key means the same bytes, so the same work is never done twice."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import CudaDevice
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


def trained_on(recipe: Recipe, cuda: CudaDevice | None) -> CudaDevice | None:
    """Where the steps of a recipe that train do so: on the server's CUDA device, or None for the processor.

    A recipe without such steps is made on the processor everywhere, and is then the same variant.
    """
    return cuda if recipe.trains() else None


def variant_key(
    model_sha256: str,
    splits: dict[str, str],
    recipe: Recipe,
    *,
    metric: str,
    task: str,
    seed: int,
    threads: int,
    cuda: CudaDevice | None = None,
    recovered: str = "",
) -> str:
    """The key of a model after a recipe, on a server with that CUDA device, if any.

    `splits` are the digests of what compression may read; none without data. `recovered` is the key of the network that a user
    trained, where that stands for what the recipe does to layers.
    """
    used = trained_on(recipe.for_builds() if recovered else recipe, cuda)
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
            # Nothing where the processor computes: its variants keep the names that they had before there was a choice.
            **({} if used is None else {"compute": used.described()}),
            **({"recovered": recovered} if recovered else {}),
        }
    )


def build_key(variant: str, runtime: str, form: str, versions: Mapping[str, str] | None = None) -> str:
    """The key of a variant lowered to a runtime's format. Portable builds do not depend on the device.

    `versions` are of what makes it, where these are not in the variant's key already.
    """
    made_by = {"versions": dict(versions)} if versions else {}
    return key_of({"variant": variant, "runtime": runtime, "format": form} | made_by)
