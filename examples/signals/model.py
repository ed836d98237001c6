"""A one-dimensional convolutional network for vibration signals."""

import torch
from make_data import CLASSES, LENGTH, make_data
from torch import nn
from torch.nn import functional


class Bearing(nn.Module):
    """`signal` is (N, 1, 512); the output is one logit for each state of the bearing."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 16, 15, stride=2, padding=7), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Conv1d(16, 32, 9, stride=2, padding=4), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 64, 9, stride=4, padding=4), nn.BatchNorm1d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * LENGTH // 16, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, CLASSES)
        )

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.features(signal))


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model and sample inputs."""
    data = {name: torch.from_numpy(array) for name, array in make_data(6000, seed=0).items()}
    torch.manual_seed(0)
    model = Bearing()
    epochs, batch = 4, 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (6000 // batch))
    for _ in range(epochs):
        for rows in torch.randperm(6000)[: 6000 // batch * batch].split(batch):
            loss = functional.cross_entropy(model(data["signal"][rows]), data["targets"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), {"signal": data["signal"][:4]}
