"""The demo's pictures: Fashion-MNIST, from Debian's package or from its public address; digits where neither can be had.

Files are kept in the user's cache folder and checked by digest before every use.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import platformdirs

from fleetfit.core.errors import IntegrityError, UnsupportedHere

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

Told = Callable[[str], None]
PACKAGE: Final = "dataset-fashion-mnist"
_INSTALLED: Final = Path("/usr/share/datasets/fashion-mnist")
# The address that the data set's own README gives (github.com/zalandoresearch/fashion-mnist).
_ADDRESS: Final = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# SHA-256 of the content, not of the .gz: Debian packs the same content anew. Taken from Debian's package.
DIGESTS: Final = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_LONGEST_S: Final = 120
_LARGEST_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Images:
    """Grey pictures (N, 1, H, W) as bytes, with their classes; `source` says where they are from."""

    images: Array
    targets: Array
    test_images: Array
    test_targets: Array
    source: str

    def head(self, count: int) -> Images:
        """The first pictures of each part, for a trial."""
        return Images(
            self.images[:count],
            self.targets[:count],
            self.test_images[:count],
            self.test_targets[:count],
            f"the first {count} of {self.source}",
        )


def cache_folder() -> Path:
    """The demo's cache: `FLEETFIT_CACHE_DIR`, else the user's."""
    return Path(os.environ.get("FLEETFIT_CACHE_DIR") or platformdirs.user_cache_path("fleetfit")) / "demo"


def load_images(told: Told) -> Images:
    """Fashion-MNIST from the nearest place that has it, else scikit-learn's digits, which `told` hears of loudly."""
    failures = []
    places: dict[str, Callable[[], Path]] = {
        "the cache": lambda: cache_folder() / "fashion-mnist",
        f"the installed package {PACKAGE}": lambda: _INSTALLED,
        f"Debian's package {PACKAGE}": lambda: _from_debian(told),
        "the data set's public address": lambda: _from_address(told),
    }
    for place, fetch in places.items():
        try:
            return _read_fashion(fetch(), place)
        except (OSError, EOFError, zlib.error, IntegrityError, UnsupportedHere) as error:
            failures.append(f"{place}: {error}")
    told(
        "ATTENTION: Fashion-MNIST cannot be had here, so the demo runs on scikit-learn's digits (1,797 pictures of 8x8)."
    )
    told("Its figures then say little: " + "; ".join(failures[2:]))
    return _digits()


def _read_fashion(folder: Path, place: str) -> Images:
    content = {name: _read(folder / f"{name}.gz", digest) for name, digest in DIGESTS.items()}
    kept = cache_folder() / "fashion-mnist"
    if folder != kept:
        _keep(folder, kept)
    return Images(
        _array(content["train-images-idx3-ubyte"]),
        _array(content["train-labels-idx1-ubyte"]),
        _array(content["t10k-images-idx3-ubyte"]),
        _array(content["t10k-labels-idx1-ubyte"]),
        f"Fashion-MNIST, from {place}",
    )


def _read(file: Path, digest: str) -> bytes:
    with gzip.open(file) as stream:
        content = stream.read(_LARGEST_BYTES)
    if hashlib.sha256(content).hexdigest() != digest:
        raise IntegrityError(f"{file} is not the file that the data set has (SHA-256 differs)")
    return content


def _array(content: bytes) -> Array:
    """IDX, the format of the MNIST files: two zeros, the type (8 is bytes), the number of axes, their sizes, the values."""
    import numpy as np

    axes = content[3]
    sizes = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes)
    return values.astype(np.int64) if axes == 1 else values[:, None]


def _keep(folder: Path, kept: Path) -> None:
    """Copy verified files into the cache, whole or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        for name in DIGESTS:
            shutil.copyfile(folder / f"{name}.gz", fresh / f"{name}.gz")
        shutil.rmtree(kept, ignore_errors=True)
        fresh.replace(kept)


def _from_debian(told: Told) -> Path:
    """The package's files, downloaded and unpacked without root."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise UnsupportedHere("apt is not here")
    told(f"fetching Fashion-MNIST (Debian's package {PACKAGE}, 31 MB)")
    folder = _scratch("debian")
    for command in (["apt-get", "-qq", "download", PACKAGE], ["dpkg-deb", "-x", f"{PACKAGE}.deb", "."]):
        if command[0] == "dpkg-deb":
            found = next(folder.glob(f"{PACKAGE}*.deb"), None)
            if found is None:
                raise UnsupportedHere("apt-get gave no package")
            found.rename(folder / f"{PACKAGE}.deb")
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_LONGEST_S)  # noqa: S603 - fixed words
        except subprocess.TimeoutExpired:
            raise UnsupportedHere(f"{command[0]} did not answer within {_LONGEST_S} s") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UnsupportedHere(f"{command[0]} failed: {last}")
    return folder / _INSTALLED.relative_to("/")


def _from_address(told: Told) -> Path:
    told(f"fetching Fashion-MNIST from {_ADDRESS} (31 MB)")
    folder = _scratch("download")
    for name in DIGESTS:
        # Plain HTTP is all that the address offers; the digest decides whether the content is right.
        with urllib.request.urlopen(f"{_ADDRESS}{name}.gz", timeout=20) as answer:  # noqa: S310 - a fixed address
            (folder / f"{name}.gz").write_bytes(answer.read(_LARGEST_BYTES))
    return folder


def _scratch(name: str) -> Path:
    folder = cache_folder() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _digits() -> Images:
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnsupportedHere(
            "neither Fashion-MNIST nor scikit-learn can be had; connect this machine to the internet, or run "
            "`apt-get install dataset-fashion-mnist` or `pip install scikit-learn`"
        ) from error
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[:, None].repeat(3, axis=2).repeat(3, axis=3)
    images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    targets = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(targets))
    rest, test = order[:-300], order[-300:]
    return Images(images[rest], targets[rest], images[test], targets[test], "scikit-learn's digits")
