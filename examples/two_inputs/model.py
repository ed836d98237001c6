"""A network with two inputs: convolutions for the picture, a small branch for the tilt, and a head for both."""

import torch
from make_data import CLASSES, make_data
from torch import nn
from torch.nn import functional


class Gauge(nn.Module):
    """`picture` is (N, 1, 24, 24), `tilt` (N, 2); the output is one logit for each tenth of the dial."""

    def __init__(self) -> None:
        super().__init__()
        self.picture_branch = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 6 * 6, 256), nn.ReLU(),
        )  # fmt: skip
        self.tilt_branch = nn.Sequential(nn.Linear(2, 64), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(256 + 64, 256), nn.ReLU(), nn.Linear(256, CLASSES))

    def forward(self, picture: torch.Tensor, tilt: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(torch.cat([self.picture_branch(picture), self.tilt_branch(tilt)], dim=1))


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The trained model and sample inputs."""
    data = {name: torch.from_numpy(array) for name, array in make_data(6000, seed=0).items()}
    torch.manual_seed(0)
    model = Gauge()
    epochs, batch = 4, 64
    steps = epochs * (6000 // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(6000)[: 6000 // batch * batch].split(batch):
            loss = functional.cross_entropy(model(data["picture"][rows], data["tilt"][rows]), data["targets"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), {"picture": data["picture"][:4], "tilt": data["tilt"][:4]}
