from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleetfit.client.demo import images


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Files of the data set's form with five pictures, which count as the real ones in this test."""
    monkeypatch.setenv("FLEETFIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "_INSTALLED", tmp_path / "nowhere")
    contents = {
        name: idx(
            np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4) if "images" in name else np.arange(5, dtype=np.uint8)
        )
        for name in images.DIGESTS
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(images, "DIGESTS", digests)

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))

    return write


def refuse(*_: object, **__: object) -> Path:
    raise OSError("nothing is reached in this test")


def test_files_become_pictures_with_one_channel(
    small: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path / "installed")
    monkeypatch.setattr(images, "_INSTALLED", tmp_path / "installed")
    found = images.load_images(lambda sentence: None)
    assert found.images.shape == (5, 1, 4, 4)
    assert found.images.dtype == np.uint8
    assert found.targets.tolist() == [0, 1, 2, 3, 4]
    assert found.targets.dtype == np.int64
    assert found.source.startswith("Fashion-MNIST, from the installed package")


def test_what_was_found_once_comes_from_the_cache(
    small: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path / "debian")
    monkeypatch.setattr(images, "_from_debian", lambda told: tmp_path / "debian")
    assert "Debian" in images.load_images(lambda sentence: None).source
    monkeypatch.setattr(images, "_from_debian", refuse)
    assert "cache" in images.load_images(lambda sentence: None).source


def test_a_changed_file_is_not_taken(
    small: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path / "installed")
    changed = tmp_path / "installed" / "t10k-labels-idx1-ubyte.gz"
    changed.write_bytes(gzip.compress(gzip.decompress(changed.read_bytes())[:-1] + b"\1"))
    monkeypatch.setattr(images, "_INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(images, "_from_debian", refuse)
    monkeypatch.setattr(images, "_from_address", refuse)
    monkeypatch.setattr(images, "_digits", lambda: images.Images(*[np.zeros(1)] * 4, "digits"))
    said: list[str] = []
    assert images.load_images(said.append).source == "digits"
    assert said[0].startswith("ATTENTION")
    assert "nothing is reached" in said[1]


def test_a_trial_takes_the_first_of_each_part() -> None:
    part = np.arange(10)
    trial = images.Images(part, part, part, part, "all").head(3)
    assert trial.images.tolist() == trial.test_targets.tolist() == [0, 1, 2]
    assert trial.source == "the first 3 of all"
