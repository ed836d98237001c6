"""Which release of torch_tensorrt goes with which torch, TensorRT, CUDA and board, each line as its makers say it.

All sources were read on 2026-11-26. Of wheels, METADATA says torch and TensorRT, torch_tensorrt/_version.py says CUDA;
tests/runtimes/torch_tensorrt_signatures.json has their names and SHA-256.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from fleetfit.core.errors import UnsupportedHere
from fleetfit.runtimes.tensorrt_library import version_of

DEVICE: str = "cuda"
"""Where PyTorch's network lies while an engine is made of it."""

Board = Literal["orin", "sbsa", "x86_64"]
Minor = tuple[int, int]
_RELEASE_FILE: Final = Path("/etc/nv_tegra_release")
_ORIN_L4T: Final = 36
# Compute capability 8.7 is Orin's alone, 7.2 Xavier's, 5.3 and 6.2 those of the boards before.
_ORIN: Final = "87"
_TOO_OLD: Final = ("53", "62", "72")


@dataclass(frozen=True)
class Release:
    """One release on one kind of machine. `source` is where it is said, `quote` the words."""

    torch_tensorrt: Minor
    board: Board
    torch: Minor
    tensorrt: Minor
    cuda: int
    """The major version; CUDA's libraries of one major version stand in for each other."""
    source: str
    quote: str


def _of_wheels(minor: int, tensorrt: Minor, cuda: int, quote: str) -> Sequence[Release]:
    """What the wheels for servers say, whose METADATA has the quote for either processor."""
    name = f"torch_tensorrt-2.{minor}"
    boards: Sequence[Board] = ("sbsa", "x86_64")
    return [
        Release((2, minor), board, (2, minor), tensorrt, cuda, f"{name}, wheel for {board}", quote) for board in boards
    ]


RELEASES: Final[Sequence[Release]] = (
    Release(
        (2, 8),
        "orin",
        (2, 8),
        (10, 3),
        12,
        "https://docs.pytorch.org/TensorRT/_sources/getting_started/jetpack.rst.txt",
        "JetPack 6.2 ... CUDA 12.6 - TensorRT 10.3 ... python -m pip install torch==2.8.0 torch_tensorrt==2.8.0",
    ),
    *_of_wheels(8, (10, 12), 12, "torch <2.9.0,>=2.8.0 ; ... tensorrt <10.13.0,>=10.12.0"),
    *_of_wheels(9, (10, 13), 13, "torch<2.10.0,>=2.9.0 ... tensorrt<10.14.0,>=10.13.0"),
    *_of_wheels(10, (10, 14), 13, "torch<2.11.0,>=2.10.0 ... tensorrt<10.15.0,>=10.14.1"),
    *_of_wheels(11, (10, 15), 13, "torch<2.12.0,>=2.11.0 ... tensorrt<10.16.0,>=10.15.1"),
    *_of_wheels(12, (10, 16), 13, "torch<2.13.0,>=2.12.0 ... tensorrt<10.17.0,>=10.16.1"),
    *_of_wheels(13, (11, 0), 13, "torch<2.14.0,>=2.13.0 ... tensorrt<11.1.0,>=11.0.0"),
    *_of_wheels(14, (11, 1), 13, "torch<2.15.0,>=2.14.0 ... <11.2.0,>=11.1.0"),
)
"""The lines. Two facts beside them:

- For an Orin there is one: "no torch_tensorrt 2.9/2.10/2.11/2.12 release for Jetson Orin ... please continue using
  torch_tensorrt 2.8 release" (https://github.com/pytorch/TensorRT/releases/tag/v2.12.1; the page for JetPack named 2.8.0 in August
  2026 still).
- Thor takes the wheels for servers: "aarch64 SBSA Linux and Jetson Thor" (that page, and that of v2.9.0), "we use sbsa
  torch_tensorrt wheel for thor" (setup.py of 2.10 to 2.13).
"""


@dataclass(frozen=True)
class Facts:
    """What a machine has. `l4t` is the major version of a Jetson's Linux, None elsewhere; `gpu` as in `sm_87x8`."""

    torch_tensorrt: str
    torch: str
    tensorrt: str
    cuda: str
    gpu: str
    machine: str
    l4t: int | None
    python: Minor


def board_of(facts: Facts) -> Board | None:
    """Which of the kinds of machine that releases are for; None for another."""
    capability = facts.gpu.removeprefix("sm_").split("x")[0]
    if facts.machine == "x86_64":
        return "x86_64"
    if facts.machine != "aarch64" or capability in _TOO_OLD:
        return None
    return "orin" if capability == _ORIN else "sbsa"


def unmatched(facts: Facts) -> str:
    """Why these versions are no release for this machine, with what would be one; empty where they are."""
    board = board_of(facts)
    here = [release for release in RELEASES if release.board == board]
    if not here:
        return f"there is no release of torch_tensorrt for {facts.machine} with a GPU {facts.gpu}; use tensorrt"
    if board == "orin" and facts.l4t != _ORIN_L4T:
        found = f"Jetson Linux {facts.l4t}" if facts.l4t else "this system"
        return (
            f"the release of torch_tensorrt for an Orin is for JetPack 6 (Jetson Linux {_ORIN_L4T}), not for {found}; use "
            "tensorrt"
        )
    if board == "orin" and facts.python != (3, 10):
        found = f"{facts.python[0]}.{facts.python[1]}"
        return f"torch for JetPack 6 is for Python 3.10, not {found}; run the agent on the system's Python"
    wanted = next((one for one in here if one.torch_tensorrt == version_of(facts.torch_tensorrt)), None)
    if wanted is None:
        known = ", ".join(_said(one.torch_tensorrt) for one in here)
        return f"torch_tensorrt {facts.torch_tensorrt} is no release that is known for this machine; install {known}"
    pairs = (
        ("torch", facts.torch, wanted.torch),
        ("TensorRT", facts.tensorrt, wanted.tensorrt),
        ("CUDA", facts.cuda, (wanted.cuda, version_of(facts.cuda)[1])),
    )
    for name, found, right in pairs:
        if version_of(found) != right:
            said = str(wanted.cuda) if name == "CUDA" else _said(right)
            return (
                f"torch_tensorrt {facts.torch_tensorrt} is for {name} {said}, and {found} is here; install the release for what "
                "is here (docs/jetson.md)"
            )
    return ""


def installed(package: str) -> str:
    """The version of a distribution. Nothing is imported: torch takes seconds. Raises UnsupportedHere with what to install."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise UnsupportedHere(
            f"{package} is not here; on a Jetson Orin with JetPack 6 install torch 2.8.0 and torch_tensorrt 2.8.0 made for "
            "it, elsewhere torch-tensorrt (docs/jetson.md)"
        ) from None


def facts_here(tensorrt: str, cuda: str, gpu: str) -> Facts:
    """What this machine has, by what TensorRT and CUDA say of themselves. Raises UnsupportedHere."""
    return Facts(
        installed("torch-tensorrt"),
        installed("torch"),
        tensorrt,
        cuda,
        gpu,
        platform.machine(),
        _l4t(),
        (sys.version_info.major, sys.version_info.minor),
    )


def _l4t() -> int | None:
    try:
        found = re.match(r"# R(\d+)", _RELEASE_FILE.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def _said(minor: Minor) -> str:
    return f"{minor[0]}.{minor[1]}"
