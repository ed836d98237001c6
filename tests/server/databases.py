"""Databases for tests, of the newest schema from the start: how it comes about is tried in storage/test_database.py."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from fleetfit.server.storage.database import Database


@functools.cache
def _migrated() -> bytes:
    """A file that went through all migrations, which takes longer than most of what tests then do with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleetfit.db"
        Database(path).close()
        return path.read_bytes()


def open_database(path: Path) -> Database:
    """The database at `path`, which is made where there is none."""
    if not path.exists():
        path.write_bytes(_migrated())
    return Database(path)
