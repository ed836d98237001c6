"""Models of many kinds, as users bring them, and their archives (made once per session)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fleetfit.client.export import export


class SmallCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Linear(6 * 6 * 6, 20), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(20, 5))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.features(image)
        return self.head(x.view(x.shape[0], -1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 8)
        self.numbers = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.words(tokens).mean(1), F.gelu(self.numbers(numbers))], dim=1)
        return self.out(self.norm(both))


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 8, 5, stride=2)
        self.b = nn.Conv1d(8, 8, 3, padding="same")
        self.c = nn.ConvTranspose1d(8, 4, 2, stride=2)
        self.out = nn.Linear(4, 1)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.a(signal), 0.2)
        x = self.c(F.elu(self.b(x)))
        return self.out(F.adaptive_avg_pool1d(x, 1).squeeze(-1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.n1 = nn.BatchNorm2d(8)
        self.c1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.n2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.n1(self.stem(x)))
        identity = x
        x = self.n2(self.c1(x))
        x += identity
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu(x, inplace=True), 1), 1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.GroupNorm(2, 8),
            nn.Hardswish(),
            nn.Conv2d(8, 6, 1),
            nn.PReLU(6),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * 16, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(steps)
        return self.out(y[:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.1)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(sequence.shape[0], -1, -1), sequence], dim=1)
        return self.out(self.layer(x)[:, 0])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 12)
        self.classes = nn.Linear(12, 4)
        self.value = nn.Linear(12, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.tanh(self.body(x))
        return {"classes": self.classes(x), "value": self.value(x) * self.scale}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens).mean(1)
        return self.head(torch.relu(self.twice(torch.relu(self.twice(x)))))


class Bytes(nn.Module):
    """Takes images as they are stored."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.out = nn.Linear(4 * 36, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.to(torch.float32) / 255
        return self.out(torch.relu(self.conv(x)).flatten(1))


class Attention(nn.Module):
    """Attention written by hand, with its head count in `view`, and a matrix that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.mix = nn.Parameter(torch.randn(12, 12) * 0.2)
        self.out = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, dim=-1) @ v
        y = y.transpose(1, 2).contiguous().view(batch, length, width) @ self.mix
        return self.out(y.mean(1)), y.sum((1, 2))


class FixedBatch(nn.Module):
    """A batch size written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 6)
        self.b = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x.view(3, 8))))


Case = tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]]]

CASES: dict[str, Case] = {
    "small_cnn": (SmallCnn, lambda: (torch.randn(2, 1, 12, 12),)),
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, 4)),
        lambda: (torch.randn(2, 5, 6),),
    ),
    "two_inputs": (TwoInputs, lambda: (torch.randint(0, 30, (2, 7)), torch.randn(2, 3))),
    "signal": (Signal, lambda: (torch.randn(1, 2, 40),)),
    "residual": (Residual, lambda: (torch.randn(2, 3, 8, 8),)),
    "depthwise": (Depthwise, lambda: (torch.randn(2, 3, 8, 8),)),
    "recurrent": (Recurrent, lambda: (torch.randn(2, 6, 4),)),
    "encoder": (Encoder, lambda: (torch.randn(2, 5, 16),)),
    "named": (Named, lambda: (torch.randn(2, 6),)),
    "tied": (Tied, lambda: (torch.randint(0, 20, (2, 4)),)),
    "bytes": (Bytes, lambda: (torch.randint(0, 255, (2, 1, 8, 8), dtype=torch.uint8),)),
    "attention": (Attention, lambda: (torch.randn(2, 4, 12),)),
}


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The model of a case with moved batch statistics, in evaluation mode, and its samples."""
    torch.manual_seed(0)
    make, samples = CASES[name]
    model, inputs = make(), samples()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval(), inputs


@pytest.fixture(scope="session")
def archive_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of a case's archive."""
    folder = tmp_path_factory.mktemp("archives")

    def make(name: str) -> Path:
        path = folder / f"{name}.pt2"
        if not path.exists():
            model, inputs = build(name)
            export(model, inputs, path)
        return path

    return make
