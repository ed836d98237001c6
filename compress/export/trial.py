"""`python -m fleetfit.compress.export.trial RUNTIME FOLDER`: run the build in a folder once, on `inputs.npz`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fleetfit.runtimes.registry import runtime


def main(name: str, folder: Path) -> None:
    """Write the outputs by name to `outputs.npz`."""
    with np.load(folder / "inputs.npz", allow_pickle=False) as inputs:
        feeds = dict(inputs)
    outputs = runtime(name).load((folder / "build").read_bytes(), threads=1).run(feeds)
    np.savez(folder / "outputs.npz", allow_pickle=False, **outputs)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
