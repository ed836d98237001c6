"""Filling the shelf from a package index, through pip."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from fleetfit.core.errors import Unavailable, UnsupportedHere
from fleetfit.server.install.installer import Stock, place_own_wheel, take_stock
from fleetfit.server.install.shelf import Shelf, Target, Wheel, read_wheel

# pip judges markers by the Python that runs it, not by the target's: what it leaves out so is asked for by name, again and again.
_ROUNDS = 6


def fetch(shelf: Shelf, targets: Sequence[Target], runtimes: Sequence[str], tell: Callable[[str], None]) -> list[Stock]:
    """Fetch all that an agent and these runtimes need on each target. What lies there already is not fetched again.

    Raises UnsupportedHere where pip is missing, Unavailable with pip's words where it fails.
    """
    if importlib.util.find_spec("pip") is None:
        raise UnsupportedHere(
            "this environment has no pip to fetch with; install it (`python -m ensurepip`), or bring wheels with "
            "`fleetfit server wheels add`"
        )
    place_own_wheel(shelf)
    found = []
    for target in targets:
        tell(f"fetching for {target} ...")
        for _ in range(_ROUNDS):
            stock = take_stock(shelf, target)
            # The agent's first: what runtimes lack is not known before.
            lacking = sorted({text for name in ("agent", *runtimes) for text in stock.lacking.get(name, ())})
            if not lacking:
                break
            _download(shelf, target, lacking)
        else:
            raise Unavailable(f"{', '.join(lacking)} could not be fetched for {target}; add wheels by hand")
        found.append(stock)
        wheels = {*stock.agent, *(wheel for name in runtimes for wheel in stock.runtimes[name])}
        tell(f"{target}: {len(wheels)} wheels, {sum(w.path.stat().st_size for w in wheels) / 1e6:.0f} MB")
    return found


def add(shelf: Shelf, files: Iterable[Path]) -> list[Wheel]:
    """Copy wheels onto the shelf. Raises InvalidInput for the first that is none; then none is copied."""
    wheels = [read_wheel(file) for file in files]
    shelf.folder.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        _place(wheel.path, shelf)
    return wheels


def _download(shelf: Shelf, target: Target, requirements: Sequence[str]) -> None:
    version = f"{target.python[0]}.{target.python[1]}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--only-binary=:all:", "--python-version", version, "--implementation", "cp"]
    for abi in (f"cp{target.python[0]}{target.python[1]}", "abi3", "none"):
        command += ["--abi", abi]
    for platform in target.platforms:
        command += ["--platform", platform]
    shelf.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shelf.folder, prefix=".fetching-") as folder:
        command += ["--dest", folder, *(str(Requirement(text)) for text in requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            said = lines[-1].removeprefix("ERROR: ") if lines else "it said nothing"
            raise Unavailable(
                f"pip cannot fetch what {target} needs ({said}); check the network and pip's configuration, or bring wheels "
                "with `fleetfit server wheels add`"
            )
        for path in Path(folder).glob("*.whl"):
            _place(path, shelf)


def _place(path: Path, shelf: Shelf) -> None:
    # Whole or not at all: a server may be reading.
    fresh = shelf.folder / f".{path.name}.new"
    shutil.copyfile(path, fresh)
    fresh.replace(shelf.folder / path.name)
