"""Vibration of a turning shaft, as a sensor on its bearing hears it, and which part is worn.

Each fault strikes at its own multiple of the shaft's speed and rings; the speed varies from sample to sample.
"""

from pathlib import Path

import numpy as np

LENGTH, RATE_HZ = 512, 4096.0
# Strikes per turn: none, outer race, inner race, ball, and an imbalance that strikes never but sways.
STRIKES = (0.0, 3.58, 5.42, 4.71, 0.0)
CLASSES = len(STRIKES)


def make_data(count: int = 6000, seed: int = 1) -> dict[str, np.ndarray]:
    """Arrays named as the model's input, and `targets`."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, count)
    time = np.arange(LENGTH) / RATE_HZ
    speed = random.uniform(24, 30, (count, 1))
    phase = random.uniform(0, 1, (count, 1))
    turns = speed * time + phase
    sway = np.where(targets == 4, 1.2, 0.3)[:, None] * np.sin(2 * np.pi * turns)
    per_turn = np.array(STRIKES)[targets][:, None]
    # Time since the last strike, in seconds; each strike rings at 900 Hz and dies within milliseconds.
    since = (turns * per_turn % 1.0) / np.maximum(per_turn * speed, 1e-9)
    ring = np.where(per_turn > 0, np.exp(-since / 0.0025) * np.sin(2 * np.pi * 900 * since), 0.0)
    strength = random.uniform(0.6, 1.4, (count, 1))
    signal = sway + strength * ring + random.normal(0, 0.45, (count, LENGTH))
    return {"signal": signal[:, None].astype(np.float32), "targets": targets.astype(np.int64)}


if __name__ == "__main__":
    np.savez(Path(__file__).with_name("data.npz"), **make_data())
