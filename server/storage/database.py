"""The database, reached from the event loop: every transaction runs in a thread, writers one at a time."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from fleetfit.core.errors import Conflict, ExhaustedResource

Result = TypeVar("Result")


class Database:
    """SQLite at `path`, brought to the newest schema when opened.

    `read` and `write` run a function with a session in a transaction of its own, in a thread, and give what it returns;
    whatever it raises rolls back. Functions must not keep rows: sessions end with them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        _upgrade(path)
        self._engines = {
            "read": _engine(path, "BEGIN", ("foreign_keys=ON", "query_only=ON")),
            "write": _engine(path, "BEGIN IMMEDIATE", ("foreign_keys=ON",)),
        }
        self._writing = threading.Lock()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="database")

    async def read(self, work: Callable[[Session], Result]) -> Result:
        """Run `work` on one consistent state of the database."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.read_now, work)

    async def write(self, work: Callable[[Session], Result]) -> Result:
        """Run `work` as the only writer, and commit. Raises ExhaustedResource where the disk is full."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.write_now, work)

    def read_now(self, work: Callable[[Session], Result]) -> Result:
        """`read`, in this thread."""
        with Session(self._engines["read"]) as session, session.begin():
            return work(session)

    def write_now(self, work: Callable[[Session], Result]) -> Result:
        """`write`, in this thread."""
        try:
            with self._writing, Session(self._engines["write"]) as session, session.begin():
                return work(session)
        except OperationalError as error:
            _explain(error, self._path)
            raise

    def close(self) -> None:
        """Wait for running transactions and close."""
        self._threads.shutdown()
        for engine in self._engines.values():
            engine.dispose()


def _engine(path: Path, begin: str, pragmas: Sequence[str]) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        # The driver must not begin transactions itself: its deferred BEGIN lets a reader turn writer and fail at once.
        connection.isolation_level = None
        cursor: sqlite3.Cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def migrations() -> Config:
    """Alembic's configuration, from this package."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _upgrade(path: Path) -> None:
    """Bring the file to the newest schema, all of it or nothing. Raises Conflict for what this version cannot read."""
    config = migrations()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    # Batch migrations drop and rebuild tables, which with foreign keys enforced would delete what refers to them.
    engine = _engine(path, "BEGIN IMMEDIATE", ("foreign_keys=OFF",))
    try:
        with engine.begin() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
            if present is not None and present not in known:
                raise Conflict(
                    f"the database {path} was written by a newer fleetfit (schema {present}); "
                    "start that version, or name another folder with --state"
                )
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
            if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
                raise Conflict(
                    f"rows of {broken[0][0]} in the database {path} refer to rows that are gone; restore a backup of it"
                )
    except DatabaseError as error:
        if not isinstance(error, OperationalError):
            raise Conflict(
                f"{path} cannot be read as a database; restore a backup of it, or name another folder with --state"
            ) from error
        _explain(error, path)
        raise
    finally:
        engine.dispose()


def _explain(error: DatabaseError, path: Path) -> None:
    if "disk is full" in str(error) or "disk I/O" in str(error):
        message = f"the server's disk is full; make room in {path.parent} and try again"
        raise ExhaustedResource(message) from error
