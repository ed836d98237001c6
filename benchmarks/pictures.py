"""Real photographs for benchmarks: crops of pictures from Debian's packages of desktop backgrounds."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("lomiri-wallpapers-20.04", "mate-backgrounds", "plasma-workspace-wallpapers", "ukui-wallpapers")
SIDE = 224
# Smaller files are drawings and previews, hardly ever photographs.
_LEAST_BYTES = 150_000


def photographs(folder: Path | None = None) -> list[Path]:
    """The `.jpg` files of the packages, fetched with `apt-get download` (no root needed), in an order fixed by content."""
    folder = folder or Path(tempfile.gettempdir()) / "fleetfit-photographs"
    if not (folder / "complete").exists():
        _fetch(folder)
    found = [
        path
        for path in folder.rglob("*.jpg")
        if path.stat().st_size >= _LEAST_BYTES and "abstract" not in path.parts and "desktop" not in path.parts
    ]
    return sorted(found, key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())


def _fetch(folder: Path) -> None:
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise SystemExit("the photographs come from Debian packages; run this on Debian or Ubuntu")
    print(f"fetching photographs into {folder} ...", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([apt, "download", "-qq", *PACKAGES], cwd=folder, check=True, stderr=subprocess.DEVNULL)  # noqa: S603
    for package in folder.glob("*.deb"):
        subprocess.run([dpkg, "-x", str(package), str(folder)], check=True)  # noqa: S603
        package.unlink()
    (folder / "complete").touch()


def crops(pictures: list[Path], each: int, seed: int) -> NDArray[np.uint8]:
    """`each` square crops of every picture at random places and scales: shape (count, 3, 224, 224), uint8."""
    from PIL import Image

    random = np.random.default_rng(seed)
    made = []
    for path in pictures:
        with Image.open(path) as opened:
            # Large photographs are decoded at a fraction of their size, which is quicker by far.
            opened.draft("RGB", (1400, 1400))
            picture = opened.convert("RGB")
        for _ in range(each):
            side = int(min(picture.size) * random.uniform(0.35, 1.0))
            left = int(random.integers(0, picture.width - side + 1))
            top = int(random.integers(0, picture.height - side + 1))
            crop = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            made.append(np.asarray(crop).transpose(2, 0, 1))
    return np.stack(made)
