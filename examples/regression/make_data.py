"""Readings of a pump and the electrical power that it takes, in kilowatts.

Flow and pressure make the power, divided by an efficiency that depends on both; wear, temperature and the state of the
filter change it. Most of the 24 readings are other sensors that repeat these with noise of their own.
"""

from pathlib import Path

import numpy as np

READINGS = 24


def make_data(count: int = 8000, seed: int = 1) -> dict[str, np.ndarray]:
    """Arrays named as the model's input, and `targets`."""
    random = np.random.default_rng(seed)
    flow, pressure, wear, heat, dirt, speed = random.uniform(0, 1, (6, count))
    efficiency = 0.85 - 0.5 * (flow - 0.2 - 0.6 * speed) ** 2 - 0.15 * wear
    dirt_loss = 0.3 * dirt * flow**2
    power = 20 * (flow * (0.3 + pressure) + dirt_loss) / efficiency + 2 * np.sin(3 * heat) * speed
    facts = np.stack([flow, pressure, wear, heat, dirt, speed], axis=1)
    # What each sensor hears of each fact is part of the machine, not of the sample.
    mixing = np.random.default_rng(7).normal(0, 0.6, (6, READINGS - 6))
    others = np.tanh(facts @ mixing) + random.normal(0, 0.05, (count, READINGS - 6))
    readings = np.concatenate([facts + random.normal(0, 0.01, facts.shape), others], axis=1)
    noise = random.normal(0, 0.2, count)
    return {"readings": readings.astype(np.float32), "targets": (power + noise)[:, None].astype(np.float32)}


if __name__ == "__main__":
    np.savez(Path(__file__).with_name("data.npz"), **make_data())
