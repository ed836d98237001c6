"""Finding rows by the names that people give: `name`, `name:version`, an id or its end, a key's beginning, `last`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from fleetfit.core.digests import short
from fleetfit.core.errors import InvalidInput, NotFound
from fleetfit.proto.v1 import snapshot_pb2
from fleetfit.server.storage.tables import (
    DatasetRow,
    DeviceRow,
    DeviceSnapshotRow,
    JobRow,
    ModelRow,
    RecoveredRow,
    TaskRow,
    VariantRow,
)

_SHORTEST_ID = 6
_SHOWN = 3
_Row = TypeVar("_Row", ModelRow, DatasetRow)
_Keyed = TypeVar("_Keyed", VariantRow, RecoveredRow)


def find_model(session: Session, text: str) -> ModelRow:
    """The newest version of a name, `name:version`, or an id. Raises NotFound."""
    rows = session.scalars(select(ModelRow).order_by(ModelRow.version.desc())).all()
    return _named(rows, text, "model", "models")


def find_dataset(session: Session, text: str) -> DatasetRow:
    """The newest version of a name, `name:version`, or an id. Raises NotFound."""
    rows = session.scalars(select(DatasetRow).order_by(DatasetRow.version.desc())).all()
    return _named(rows, text, "dataset", "data")


def find_device(session: Session, text: str) -> DeviceRow:
    """A device by name or id. Raises NotFound."""
    rows = session.scalars(select(DeviceRow)).all()
    for row in rows:
        if text in (row.name, row.id):
            return row
    raise NotFound(_unknown("device", text, [row.name for row in rows], "devices"), field="device")


def find_devices(session: Session, texts: Sequence[str]) -> list[DeviceRow]:
    """Devices by names, ids, labels or `all`, each once, by name. Raises NotFound for what names none."""
    rows = session.scalars(select(DeviceRow).order_by(DeviceRow.name)).all()
    chosen: dict[str, DeviceRow] = {}
    for text in texts:
        hits = [row for row in rows if text == "all" or text in (row.name, row.id) or text in row.labels]
        if not hits:
            known = [row.name for row in rows] + sorted({label for row in rows for label in row.labels})
            raise NotFound(_unknown("device or label", text, known, "devices"), field="devices")
        chosen.update({row.id: row for row in hits})
    return sorted(chosen.values(), key=lambda row: row.name)


def read_snapshot(session: Session, device: DeviceRow) -> snapshot_pb2.DeviceSnapshot | None:
    """The newest facts about a device."""
    stored = session.get(DeviceSnapshotRow, device.snapshot_id) if device.snapshot_id else None
    return None if stored is None else snapshot_pb2.DeviceSnapshot.FromString(stored.content)


def newest_id(session: Session) -> str:
    """The newest of the ids by whose order something is found or done; empty where there is none."""
    newest = (session.scalar(select(func.max(key))) for key in (JobRow.id, TaskRow.id, ModelRow.id, DatasetRow.id))
    return max(filter(None, newest), default="")


def find_job(session: Session, text: str) -> JobRow:
    """A job by its id, its end (6 characters at least; ids of one hour begin alike), or `last`. Raises NotFound."""
    if text == "last":
        row = session.scalars(select(JobRow).order_by(JobRow.id.desc()).limit(1)).first()
        if row is None:
            raise NotFound("there is no job yet; start one with `fleetfit compress` or `fleetfit bench`", field="job")
        return row
    if len(text) < _SHORTEST_ID:
        raise InvalidInput(f"'{text}' is too short for a job's id; give {_SHORTEST_ID} characters or more, or 'last'")
    rows = session.scalars(select(JobRow).where(JobRow.id.endswith(text, autoescape=True)).limit(2)).all()
    if not rows:
        raise NotFound(f"there is no job '{text}'; `fleetfit jobs list` shows them", field="job")
    if len(rows) > 1:
        raise InvalidInput(f"the ids of several jobs end with '{text}'; give more of the id", field="job")
    return rows[0]


def find_by_key(
    session: Session, own: Select[_Keyed], key: InstrumentedAttribute[str], text: str, what: str, shown_by: str
) -> _Keyed:
    """The one row of `own` whose key begins with `text`. Raises NotFound, InvalidInput for a beginning of none or of several.

    `what` is its noun with an adjective at most; `shown_by` says where its names stand.
    """
    if len(text) < _SHORTEST_ID:
        raise InvalidInput(
            f"'{text}' is too short for a {what}; give {_SHORTEST_ID} characters or more of the name that {shown_by} shows",
            field=what.split()[0],
        )
    rows = session.scalars(own.where(key.startswith(text, autoescape=True)).order_by(key)).all()
    if len(rows) == 1:
        return rows[0]
    if rows:
        keys: list[str] = [getattr(row, key.key) for row in rows[:_SHOWN]]
        some = ", ".join(one[: len(text) + 4] for one in keys)
        raise InvalidInput(
            f"several {what}s begin with '{text}' ({some}); give more of the name", field=what.split()[0]
        )
    known = [short(one) for one in session.scalars(own.with_only_columns(key).order_by(key))]
    near = difflib.get_close_matches(short(text), known, _SHOWN)
    hint = f"did you mean {' or '.join(near)}?" if near else f"{shown_by} shows their names"
    raise NotFound(f"there is no {what} '{text}'; {hint}", field=what.split()[0])


def _named(rows: Sequence[_Row], text: str, what: str, command: str) -> _Row:
    name, _, version = text.partition(":")
    accepted_first = sorted(rows, key=lambda row: row.state != "accepted")
    for row in accepted_first if not version else rows:
        if text == row.id or (row.name == name and (not version or str(row.version) == version)):
            return row
    raise NotFound(_unknown(what, text, sorted({row.name for row in rows}), command), field=what)


def _unknown(what: str, text: str, known: Sequence[str], command: str) -> str:
    near = difflib.get_close_matches(text, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"`fleetfit {command} list` shows what there is"
    return f"there is no {what} '{text}'; {hint}"
