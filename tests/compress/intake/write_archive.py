"""Write an archive by whatever PyTorch runs this, and what its network answers there: `python write_archive.py FOLDER`.

The files in `archives` were written by it, with PyTorch from the package index, so that `test_archives` reads what each version
really writes. PyTorch and NumPy are all that it needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

# Where it runs fleetfit is not installed, so the checkout's has to be found first.
sys.path.insert(0, str(Path(__file__).parents[3]))

from fleetfit.client.export import export  # noqa: E402


class Network(nn.Module):
    """Weights, statistics that are stored, a buffer, a constant, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.left, self.right = nn.Linear(36, 36), nn.Linear(36, 36)
        self.right.weight = self.left.weight
        self.last = nn.Linear(144, 3)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 36))
        self.shift = torch.linspace(-1, 1, 36)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Three numbers for each picture of 8 by 8."""
        found = self.first(image).flatten(2) * self.scale + self.shift
        return self.last((self.left(found) + self.right(found).tanh()).flatten(1))


def main(folder: Path) -> None:
    """Write `torch-VERSION.pt2` and `.npz`."""
    torch.manual_seed(0)
    network = Network()
    network(torch.randn(64, 1, 8, 8) * 2 + 1)
    network.eval()
    image = torch.randn(3, 1, 8, 8)
    path = folder / f"torch-{torch.__version__.partition('+')[0]}.pt2"
    export(network, (image,), path)
    with torch.no_grad():
        np.savez(path.with_suffix(".npz"), image=image.numpy(), answer=network(image).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
