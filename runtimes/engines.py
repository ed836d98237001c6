"""What compilers made of builds on this device, kept for the next time: a folder of files, or of folders."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from fleetfit.core.children import ENGINES_VARIABLE
from fleetfit.core.digests import key_of
from fleetfit.runtimes.building import Shapes

_MOST_BYTES: Final = 2 << 30
# Used within so many seconds: the measurement that goes on may come back to it, since processes take turns with several.
_IN_USE_S: Final = 3600


@dataclass(frozen=True)
class Engines:
    """The engines of one device. Each is named for what it was made of and by (`build_key`), its shapes, and the attempt."""

    folder: Path

    @classmethod
    def here(cls) -> Engines:
        """Those in the folder that an agent names, else in the user's cache."""
        chosen = os.environ.get(ENGINES_VARIABLE)
        return cls(Path(chosen) if chosen else platformdirs.user_cache_path("fleetfit") / "engines")

    def find(self, build_key: Sequence[str], shapes: Shapes, attempt: int, make: Callable[[Path], None]) -> Path:
        """The engine for these shapes, which `make` puts where it is told if there is none. It is the last used now.

        Two attempts at one network are two engines, which may differ in how fast they are.
        """
        path = self.folder / f"{_key(build_key)}.{key_of([shapes, attempt])[:16]}.engine"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{path.name}.{os.getpid()}")
            try:
                make(fresh)
                fresh.replace(path)
            except BaseException:
                _remove(fresh)
                raise
            evict(self.folder, _MOST_BYTES, keep=path)
        os.utime(path)
        return path

    def last(self, build_key: Sequence[str]) -> Path | None:
        """The engine of this build that was used last."""
        found = sorted(self.folder.glob(f"{_key(build_key)}.*.engine"), key=lambda path: path.stat().st_mtime_ns)
        return found[-1] if found else None


def _key(build_key: Sequence[str]) -> str:
    return key_of(list(build_key))[:32]


def evict(folder: Path, limit_bytes: int, *, keep: Path) -> None:
    """Delete engines that were used longest ago until the others are within the limit; those in use stay, beyond it too.

    Without that, engines that are larger than the limit together would be made anew for every process that takes its turn.
    """
    unused = (time.time() - _IN_USE_S) * 1e9
    paths = sorted(folder.glob("*.engine*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    total = _size(keep)
    for path in paths:
        if path == keep:
            continue
        total += _size(path)
        if total > limit_bytes and path.stat().st_mtime_ns < unused:
            _remove(path)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
