"""Networks of torch.nn alone for the breadth benchmark: recurrent ones, regressors, several inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Inputs = tuple[tuple[int, ...], ...]


class Recurrent(nn.Module):
    """LSTM or GRU over a signal; the last state is read by a hidden layer."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], outputs: int, layers: int = 1, both: bool = False) -> None:
        super().__init__()
        self.body = kind(16, 48, num_layers=layers, bidirectional=both, batch_first=True)
        self.hidden = nn.Linear(96 if both else 48, 32)
        self.head = nn.Linear(32, outputs)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        states, _ = self.body(signal)
        return self.head(functional.relu(self.hidden(states[:, -1])))


class ConvolutionThenLstm(nn.Module):
    """Convolutions over time, an LSTM, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 32, 5, padding=2)
        self.norm = nn.BatchNorm1d(32)
        self.second = nn.Conv1d(32, 48, 5, padding=2)
        self.body = nn.LSTM(48, 32, batch_first=True)
        self.head = nn.Linear(32, 6)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool1d(functional.relu(self.norm(self.first(signal))), 2)
        states, _ = self.body(functional.relu(self.second(x)).transpose(1, 2))
        return self.head(states.mean(1))


class Tagger(nn.Module):
    """A class for each step and one for the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(16, 40, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(80, 7)
        self.whole = nn.Linear(80, 3)

    def forward(self, signal: torch.Tensor) -> dict[str, torch.Tensor]:
        states, _ = self.body(signal)
        return {"tags": self.tags(states), "whole": self.whole(states.mean(1))}


class Perceptron(nn.Module):
    """Layer norm and dropout between linear layers; one number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(20, 64),
            nn.LayerNorm(64),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(64, 64),
            nn.SiLU(),
            nn.Linear(64, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.body(features).squeeze(-1)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Pictures(nn.Module):
    """A small backbone with group norm and a residual; as many heads as asked."""

    def __init__(self, *heads: int, norm: bool = False) -> None:
        super().__init__()
        self.stem, self.down = _block(3, 32, 2), _block(32, 64, 2)
        self.inner = nn.Conv2d(64, 64, 3, padding=1)
        self.norm = nn.GroupNorm(8, 64) if norm else nn.BatchNorm2d(64)
        self.heads = nn.ModuleList(nn.Linear(64, count) for count in heads)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        x = self.down(self.stem(image))
        x = functional.relu(x + self.norm(self.inner(x))).mean((2, 3))
        found = tuple(head(x) for head in self.heads)
        return found if len(found) > 1 else found[0]


class Detector(nn.Module):
    """Two scales joined by upsampling; boxes and classes for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = _block(3, 24, 2), _block(24, 48, 2), _block(48, 64, 2)
        self.side = nn.Conv2d(64, 48, 1)
        self.boxes, self.classes = nn.Conv2d(96, 4, 3, padding=1), nn.Conv2d(96, 5, 3, padding=1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        one = self.one(self.stem(image))
        up = functional.interpolate(self.side(self.two(one)), scale_factor=2.0, mode="nearest")
        x = torch.cat([one, up], 1)
        boxes, classes = self.boxes(x).flatten(2).transpose(1, 2), self.classes(x).flatten(2).transpose(1, 2)
        return {"boxes": boxes.sigmoid(), "scores": classes.softmax(-1)}


class TwoInputs(nn.Module):
    """An image and a table of numbers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(_block(1, 24, 2), _block(24, 48, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.table = nn.Sequential(nn.Linear(12, 40), nn.ReLU())
        self.mix = nn.Linear(88, 64)
        self.first, self.second = nn.Linear(64, 4), nn.Linear(64, 1)

    def forward(self, image: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = functional.relu(self.mix(torch.cat([self.image(image), self.table(table)], 1)))
        return self.first(x), self.second(x)


class Autoencoder(nn.Module):
    """Down and up again with transposed convolutions; the code is given too."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1), nn.PReLU(24), nn.Conv2d(24, 32, 3, 2, 1), nn.PReLU(32))
        self.narrow, self.back = nn.Linear(32 * 64, 16), nn.Linear(16, 32 * 64)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(32, 24, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 24, 2, 2),
            nn.ReLU(),
            nn.Conv2d(24, 1, 1),
        )

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        code = self.narrow(self.down(image).flatten(1))
        return self.up(self.back(code).view(-1, 32, 8, 8)), code


class Encoder(nn.Module):
    """A transformer encoder of torch.nn."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.start = nn.Linear(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=first)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.start(signal)).mean(1))


_SIGNAL: Inputs = ((20, 16),)
_IMAGE: Inputs = ((3, 32, 32),)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "lstm_classifier": (lambda: Recurrent(nn.LSTM, 6), _SIGNAL),
    "gru_classifier": (lambda: Recurrent(nn.GRU, 6), _SIGNAL),
    "stacked_lstm": (lambda: Recurrent(nn.LSTM, 6, layers=2), _SIGNAL),
    "bidirectional_lstm": (lambda: Recurrent(nn.LSTM, 6, both=True), _SIGNAL),
    "bidirectional_gru": (lambda: Recurrent(nn.GRU, 6, layers=2, both=True), _SIGNAL),
    "lstm_forecaster": (lambda: Recurrent(nn.LSTM, 1), _SIGNAL),
    "gru_forecaster": (lambda: Recurrent(nn.GRU, 1, layers=2), _SIGNAL),
    "conv_lstm": (ConvolutionThenLstm, ((8, 40),)),
    "lstm_tagger": (Tagger, _SIGNAL),
    "mlp_regressor": (Perceptron, ((20,),)),
    "conv_regressor": (lambda: Pictures(1), _IMAGE),
    "age_regressor": (lambda: Pictures(1, norm=True), _IMAGE),
    "multitask": (lambda: Pictures(7, 2, 1, norm=True), _IMAGE),
    "detector": (Detector, ((3, 64, 64),)),
    "two_inputs": (TwoInputs, ((1, 32, 32), (12,))),
    "autoencoder": (Autoencoder, ((1, 32, 32),)),
    "encoder_classifier": (lambda: Encoder(first=False), ((10, 12),)),
    "encoder_prenorm": (lambda: Encoder(first=True), ((10, 12),)),
}
