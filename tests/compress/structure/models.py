"""Small models, each with something of its own that pruning must understand."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from fleetfit.client.export import export
from fleetfit.compress.graph import LayeredModel
from fleetfit.compress.intake.pt2 import load_pt2


class Classifier(nn.Module):
    """Convolution, batch norm, pooling, flatten, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6 * 16, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(image))), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """Two branches that are added: their channels are coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 5, 3, padding=1)
        self.back = nn.Conv2d(5, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(image))
        x = functional.relu(x + self.norm(self.back(functional.relu(self.inner(x)))))
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """A depthwise convolution follows the channels it reads; another makes two of each."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.copies = nn.Conv2d(8, 16, 3, groups=8)
        self.project = nn.Conv2d(16, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.norm(self.depth(self.expand(image))))
        return self.project(functional.relu6(self.copies(x)))


class Joined(nn.Module):
    """Two inputs, concatenated with one that is not made by any layer, then flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv1d(2, 6, 3, padding=1)
        self.right = nn.Conv1d(1, 4, 3, padding=1)
        self.mix = nn.Conv1d(11, 7, 1)
        self.head = nn.Linear(7 * 10, 2)

    def forward(self, signal: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        x = torch.cat([torch.tanh(self.left(signal)), other, torch.tanh(self.right(other))], 1)
        return self.head(torch.flatten(functional.relu(self.mix(x)), 1))


class SqueezeExcite(nn.Module):
    """Channels scaled by what a small network makes of their means: its output is coupled to them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.conv(image))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))
        return functional.adaptive_avg_pool2d(self.head(x * gate), 1).flatten(1)


class Upscaler(nn.Module):
    """A transposed convolution with PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.act = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.out = nn.Conv2d(5, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.out(functional.relu(self.up(self.act(self.down(image)))))


class Tokens(nn.Module):
    """Embedding, a linear layer over a sequence, a mean over time; two outputs, one of them in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 10)
        self.mix = nn.Linear(10, 9)
        self.middle = nn.Linear(9, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = functional.gelu(self.mix(self.embed(tokens)))
        middle = functional.relu(self.middle(x.mean(1)))
        return self.head(middle), middle


class Twice(nn.Module):
    """One layer used twice, and another whose weight the model reads by itself too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.shared = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(x))
        x = functional.relu(self.shared(functional.relu(self.shared(x))))
        return self.head(functional.relu(self.tied(x))) + self.tied.weight.sum()


class Attention(nn.Module):
    """A transformer's block: heads, residuals and layer norms keep most of it whole."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x).mean(1))


class Recurrent(nn.Module):
    """An LSTM, whose gates are cut apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.hidden = nn.Linear(5, 7)
        self.head = nn.Linear(7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x)
        return self.head(functional.relu(self.hidden(states[:, -1])))


class Heads(nn.Module):
    """Attention written out, with queries, keys and values apart: heads go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, steps, _ = x.shape
        q, k, v = (layer(x).view(count, steps, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / 2, -1)
        return self.head(torch.matmul(weights, v).transpose(1, 2).reshape(count, steps, 8))


class Grouped(nn.Module):
    """Convolutions in groups: the same places of every group go together, also through a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 1)
        self.wide = nn.Conv2d(8, 12, 3, groups=4)
        self.narrow = nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.wide(functional.relu(self.first(image))))
        return self.head(functional.relu(self.narrow(x))).mean((2, 3))


class Shuffled(nn.Module):
    """ShuffleNet's unit: grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 1)
        self.first = nn.Conv2d(8, 16, 1, groups=2)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.second = nn.Conv2d(16, 6, 1, groups=2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(functional.relu(self.stem(image))))
        count, _, height, width = x.shape
        x = x.view(count, 2, 8, height, width).transpose(1, 2).contiguous().view(count, 16, height, width)
        return self.head(functional.relu(self.second(self.depth(x)))).mean((2, 3))


class Halves(nn.Module):
    """Channels cut in two and in three, with `chunk`, `split` and a slice, and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 1)
        self.left, self.right = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 9, 1)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        one, two = functional.relu(self.stem(image)).chunk(2, 1)
        x = functional.relu(self.right(torch.cat([functional.relu(self.left(one)), two], 1)))
        a, b, c = x.split([2, 5, 2], 1)
        return self.head(torch.cat([a * c, b[:, :4], b[:, 4:]], 1)).mean((2, 3))


class Normed(nn.Module):
    """Group norm lets whole groups go, instance norm single channels, and layer norm none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.groups = nn.Conv2d(1, 12, 3), nn.GroupNorm(4, 12)
        self.second, self.single = nn.Conv2d(12, 6, 3), nn.InstanceNorm2d(6, affine=True)
        self.third, self.plain = nn.Conv2d(6, 5, 1), nn.InstanceNorm2d(5)
        self.hidden, self.all = nn.Linear(5, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.single(self.second(functional.relu(self.groups(self.first(image)))))
        x = functional.relu(self.plain(self.third(functional.relu(x)))).mean((2, 3))
        return self.head(self.all(self.hidden(x)))


class Gated(nn.Module):
    """Two bidirectional GRU layers; the last states and all of them are read."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, 7)
        self.gru = nn.GRU(7, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.steps, self.end = nn.Linear(12, 2), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, last = self.gru(functional.relu(self.start(x)))
        return self.steps(states), self.end(last[-1])


class Scaled(nn.Module):
    """A scale and a shift for each channel that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(6, 1, 1) + 0.5), nn.Parameter(torch.randn(1, 6, 1, 1))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu(self.conv(image) * self.scale + self.shift)).mean((2, 3))


class Bytes(nn.Module):
    """An image of bytes, normalised inside."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(16, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu(self.hidden((image.to(torch.float32) / 255 - 0.5).flatten(1))))


def _image(channels: int, side: int = 8) -> torch.Tensor:
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "classifier": (Classifier, (_image(1),)),
    "residual": (Residual, (_image(3),)),
    "depthwise": (Depthwise, (_image(2),)),
    "joined": (Joined, (torch.randn(3, 2, 10), torch.randn(3, 1, 10))),
    "squeeze_excite": (SqueezeExcite, (_image(1),)),
    "upscaler": (Upscaler, (_image(1),)),
    "tokens": (Tokens, (torch.randint(0, 20, (3, 5)),)),
    "twice": (Twice, (torch.randn(3, 4),)),
    "attention": (Attention, (torch.randn(3, 6, 8),)),
    "recurrent": (Recurrent, (torch.randn(3, 4, 3),)),
    "heads": (Heads, (torch.randn(3, 5, 6),)),
    "grouped": (Grouped, (_image(2),)),
    "shuffled": (Shuffled, (_image(1),)),
    "halves": (Halves, (_image(1),)),
    "normed": (Normed, (_image(1),)),
    "gated": (Gated, (torch.randn(3, 4, 3),)),
    "scaled": (Scaled, (_image(1),)),
    "bytes": (Bytes, (torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8),)),
}


class Zoo(dict[str, LayeredModel]):
    """The models by name; printed shortly, since hypothesis prints arguments."""

    def __repr__(self) -> str:
        return "the models"


@functools.cache
def _once(name: str) -> LayeredModel:
    make, samples = MODELS[name]
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        return load_pt2(export(make().eval(), samples, Path(folder) / "m.pt2"))


def loaded(name: str) -> LayeredModel:
    """One of them, exported and loaded: a copy, because that takes longer than most tests."""
    return _once(name).clone()


def zoo() -> Zoo:
    """All of them."""
    return Zoo((name, loaded(name)) for name in MODELS)
