from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alembic.autogenerate
import alembic.command
import pytest
from alembic.runtime.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from fleetfit.core.errors import Conflict, ExhaustedResource
from fleetfit.server.storage.database import Database, migrations
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import ArtifactRow, Base, CandidateRow, PersonRow


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "fleetfit.db")
    yield opened
    opened.close()


def person(name: str) -> PersonRow:
    return PersonRow(token_sha256=name, name=name, created_ms=now_ms())


def names(session: Session) -> list[str]:
    return sorted(session.scalars(select(PersonRow.name)))


def test_migrations_make_exactly_the_tables(database: Database, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'fleetfit.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert alembic.autogenerate.compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_every_constraint_has_a_name(database: Database, tmp_path: Path) -> None:
    # SQLite's batch migrations cannot drop what has none.
    for table in Base.metadata.sorted_tables:
        for constraint in table.constraints:
            assert constraint.name, (table.name, constraint)


def test_migrations_go_down_and_up_again(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    config = migrations()
    for move, target in (("upgrade", "head"), ("downgrade", "base"), ("upgrade", "head")):
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            getattr(alembic.command, move)(config, target)
    engine.dispose()


def test_opening_again_keeps_rows(tmp_path: Path) -> None:
    first = Database(tmp_path / "x.db")
    first.write_now(lambda session: session.add(person("ada")))
    first.close()
    second = Database(tmp_path / "x.db")
    assert second.read_now(names) == ["ada"]
    second.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "x.db").close()
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(Conflict, match="newer fleetfit.*--state"):
        Database(tmp_path / "x.db")


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(Conflict, match="restore a backup"):
        Database(tmp_path / "x.db")


def test_an_interrupted_first_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    real, made = op.create_table, []

    def breaks(name: str, *columns: Any, **options: Any) -> Any:
        made.append(name)
        if len(made) == 6:
            raise KeyboardInterrupt
        return real(name, *columns, **options)

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_table", breaks)
        with pytest.raises(KeyboardInterrupt):
            Database(tmp_path / "x.db")
    assert len(made) == 6
    connection = sqlite3.connect(tmp_path / "x.db")
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()
    Database(tmp_path / "x.db").close()


def test_what_raises_changes_nothing(database: Database) -> None:
    def half(session: Session) -> None:
        session.add(person("ada"))
        session.flush()
        raise KeyError("stop")

    with pytest.raises(KeyError):
        database.write_now(half)
    assert database.read_now(names) == []


def test_foreign_keys_are_enforced(database: Database) -> None:
    row = CandidateRow(
        id=new_id(),
        job_id="none",
        device_id="none",
        variant_key="none",
        recipe="",
        role="original",
        runtime="onnxruntime",
        threads=1,
        batch=1,
        position=0,
        state="waiting",
        reason="",
    )
    with pytest.raises(IntegrityError):
        database.write_now(lambda session: session.add(row))


def test_reading_cannot_write(database: Database) -> None:
    def sneaks(session: Session) -> None:
        session.add(person("eve"))
        session.flush()

    with pytest.raises(OperationalError, match="readonly"):
        database.read_now(sneaks)
    assert database.read_now(names) == []


def test_counting_up_from_many_tasks_loses_nothing(database: Database) -> None:
    """A read and then a write in one transaction: with SQLite's deferred BEGIN most of these would be refused."""
    row = ArtifactRow(sha256="a" * 64, size_bytes=0, owner="x", created_ms=0)
    database.write_now(lambda session: session.add(row))

    def count(session: Session) -> None:
        found = session.get_one(ArtifactRow, "a" * 64)
        time.sleep(0.002)
        found.size_bytes += 1

    async def run() -> None:
        reads = [database.read(lambda session: session.get_one(ArtifactRow, "a" * 64).size_bytes) for _ in range(40)]
        await asyncio.gather(*(database.write(count) for _ in range(40)), *reads)

    asyncio.run(run())
    assert database.read_now(lambda session: session.get_one(ArtifactRow, "a" * 64).size_bytes) == 40


def test_two_processes_worth_of_writers_wait_for_each_other(tmp_path: Path) -> None:
    """Two `Database` objects share no lock of ours, as two processes would not: SQLite's own must do."""
    both = [Database(tmp_path / "x.db") for _ in range(2)]
    both[0].write_now(lambda session: session.add(ArtifactRow(sha256="a", size_bytes=0, owner="", created_ms=0)))

    def count(session: Session) -> None:
        session.get_one(ArtifactRow, "a").size_bytes += 1
        time.sleep(0.002)

    def many(database: Database) -> None:
        for _ in range(20):
            database.write_now(count)

    threads = [threading.Thread(target=many, args=(database,)) for database in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both[1].read_now(lambda session: session.get_one(ArtifactRow, "a").size_bytes) == 40
    for database in both:
        database.close()


def test_a_reader_sees_one_state(database: Database) -> None:
    database.write_now(lambda session: session.add(person("ada")))

    def look_twice(session: Session) -> tuple[list[str], list[str]]:
        before = names(session)
        database.write_now(lambda writer: writer.add(person("bob")))
        return before, names(session)

    before, after = database.read_now(look_twice)
    assert before == after == ["ada"]
    assert database.read_now(names) == ["ada", "bob"]


def test_what_is_committed_survives_a_killed_process(database: Database, tmp_path: Path) -> None:
    database.write_now(lambda session: session.add(person("ada")))
    # The files as a killed process leaves them: with the write-ahead log not yet merged.
    (tmp_path / "copy").mkdir()
    for path in tmp_path.glob("fleetfit.db*"):
        shutil.copyfile(path, tmp_path / "copy" / path.name)
    assert (tmp_path / "copy" / "fleetfit.db-wal").stat().st_size > 0
    again = Database(tmp_path / "copy" / "fleetfit.db")
    assert again.read_now(names) == ["ada"]
    again.close()


def test_a_full_disk_is_said_in_words_and_passes(database: Database) -> None:
    def fill(session: Session) -> None:
        # SQLite's own limit on the file's size gives the same error as a full disk.
        session.execute(text("PRAGMA max_page_count = 1"))
        for number in range(2000):
            session.add(PersonRow(token_sha256=f"{number}", name="x" * 500, created_ms=0))
        session.flush()

    with pytest.raises(ExhaustedResource, match="make room in .*try again"):
        database.write_now(fill)

    def relax(session: Session) -> None:
        session.execute(text("PRAGMA max_page_count = 1000000"))
        session.add(person("ada"))

    database.write_now(relax)
    assert database.read_now(names) == ["ada"]


@given(count=st.integers(2, 200))
def test_ids_are_unique_and_of_one_length(count: int) -> None:
    made = [new_id() for _ in range(count)]
    assert len(set(made)) == count
    assert {len(one) for one in made} == {26}


def test_ids_sort_by_time() -> None:
    made = []
    for _ in range(5):
        made.append(new_id())
        time.sleep(0.002)
    assert made == sorted(made)
