"""Pictures of a gauge's needle, taken by a tilted camera, and the tenth of the dial that it points to.

Neither input says it alone: the picture shows the needle as the camera sees it, `tilt` how the camera is turned.
"""

from pathlib import Path

import numpy as np

SIZE, CLASSES = 24, 10


def make_data(count: int = 8000, seed: int = 1) -> dict[str, np.ndarray]:
    """Arrays named as the model's inputs, and `targets`."""
    random = np.random.default_rng(seed)
    reading, tilt = random.uniform(0, 2 * np.pi, (2, count))
    seen = reading + tilt
    axis = np.linspace(-1, 1, SIZE)
    x, y = np.meshgrid(axis, axis)
    cosine, sine = np.cos(seen)[:, None, None], np.sin(seen)[:, None, None]
    along, across = x * cosine + y * sine, y * cosine - x * sine
    needle = np.exp(-((across / 0.12) ** 2)) / (1 + np.exp(-20 * along)) * (along < 0.8)
    rim = np.exp(-(((np.hypot(x, y) - 0.9) / 0.06) ** 2))
    light = random.uniform(0.5, 1.0, (count, 1, 1))
    picture = light * (needle + 0.5 * rim) + random.normal(0, 0.25, (count, SIZE, SIZE))
    # The camera knows its tilt to about three degrees.
    known = tilt + random.normal(0, 0.05, count)
    return {
        "picture": picture[:, None].astype(np.float32),
        "tilt": np.stack([np.cos(known), np.sin(known)], axis=1).astype(np.float32),
        "targets": (reading / (2 * np.pi) * CLASSES).astype(np.int64) % CLASSES,
    }


if __name__ == "__main__":
    np.savez(Path(__file__).with_name("data.npz"), **make_data())
