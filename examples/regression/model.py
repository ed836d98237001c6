"""A fully connected network that predicts a pump's power from its readings."""

import torch
from make_data import READINGS, make_data
from torch import nn
from torch.nn import functional


class Pump(nn.Module):
    """`readings` is (N, 24); the output is (N, 1), the power in kilowatts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(READINGS, 512), nn.ReLU(),
            nn.Linear(512, 512), nn.ReLU(),
            nn.Linear(512, 256), nn.ReLU(),
            nn.Linear(256, 1),
        )  # fmt: skip

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        """Power in kilowatts."""
        return self.layers(readings)


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model and sample inputs."""
    data = {name: torch.from_numpy(array) for name, array in make_data(6000, seed=0).items()}
    torch.manual_seed(0)
    model = Pump()
    epochs, batch = 8, 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (6000 // batch))
    for _ in range(epochs):
        for rows in torch.randperm(6000)[: 6000 // batch * batch].split(batch):
            loss = functional.l1_loss(model(data["readings"][rows]), data["targets"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), {"readings": data["readings"][:4]}
