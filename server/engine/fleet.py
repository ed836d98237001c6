"""Devices: who they are, whether they are here, and which session counts."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.core.digests import sha256_bytes
from fleetfit.core.errors import InvalidInput, NotFound, PermissionDenied, Superseded
from fleetfit.device_profiles.loader import load_profiles
from fleetfit.device_profiles.matching import facts_of, match
from fleetfit.proto.printable import make_printable, printable
from fleetfit.proto.v1 import devices_pb2, snapshot_pb2, work_pb2
from fleetfit.server.engine.health import clear, describe, want_check
from fleetfit.server.engine.hours import parse_window, within_hours
from fleetfit.server.engine.lookup import find_device, find_devices, read_snapshot
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import new_id, now_ms
from fleetfit.server.storage.tables import DeviceRow, DeviceSnapshotRow, TaskRow

_ANOTHER: Final = (
    "another agent with this device's identity has connected; one device is one agent: stop the other, or give "
    "this one an identity of its own with --state"
)
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,63}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Fleet:
    """The registered devices. Who is connected is known to this process only; everything else is in the database."""

    def __init__(self, database: Database, check_every_ms: int = 0) -> None:
        self._database = database
        self._check_every_ms = check_every_ms
        self._attending: dict[str, tuple[int, asyncio.Queue[work_pb2.AttendResponse]]] = {}
        # Counted from the start of this process: a restarted server must not give devices up that it could not hear.
        self._away_since: dict[str, float] = {}
        self._started = time.monotonic()

    async def register(self, name: str, labels: Sequence[str], agent_version: str) -> tuple[str, str]:
        """A new device; its id and its name, made unique."""
        wanted = re.sub(r"[^A-Za-z0-9_.-]", "-", name).strip("-_.")[:60] or "device"

        def insert(session: Session) -> tuple[str, str]:
            taken = set(session.scalars(select(DeviceRow.name)))
            unique, number = wanted, 2
            while unique in taken or unique == "all":
                unique, number = f"{wanted}-{number}", number + 1
            row = DeviceRow(
                id=new_id(),
                name=unique,
                labels=sorted(set(labels)),
                paused=False,
                agent_version=agent_version,
                profile="",
                profile_reason="",
                session_number=0,
                snapshot_id=None,
                enrolled_ms=now_ms(),
                last_seen_ms=0,
            )
            session.add(row)
            return row.id, row.name

        return await self._database.write(insert)

    async def hello(self, device_id: str, request: work_pb2.HelloRequest) -> tuple[int, str, str]:
        """Open a session: its number, the device's name, its profile as JSON. An older session ends."""
        make_printable(request.snapshot)
        content = request.snapshot.SerializeToString(deterministic=True)
        snapshot_id = snapshot_key(request.snapshot)
        matched = match(facts_of(request.snapshot))

        def open_session(session: Session) -> tuple[int, str]:
            row = session.get(DeviceRow, device_id)
            if row is None:
                raise PermissionDenied("this device is not registered here any more; enrol it again with a new token")
            if session.get(DeviceSnapshotRow, snapshot_id) is None:
                session.add(DeviceSnapshotRow(id=snapshot_id, content=content, created_ms=now_ms()))
                session.flush()
            row.session_number += 1
            row.snapshot_id = snapshot_id
            row.agent_version = request.agent_version
            row.capabilities = sorted(set(request.capabilities))
            row.profile, row.profile_reason = matched.profile.name, matched.reason
            row.last_seen_ms = now_ms()
            if request.life and request.life != row.life:
                row.life = printable(request.life)
                row.check_wanted = row.check_wanted or self._check_every_ms > 0
            return row.session_number, row.name

        number, name = await self._database.write(open_session)
        older = self._attending.get(device_id)
        if older is not None:
            older[1].put_nowait(work_pb2.AttendResponse(superseded=work_pb2.Superseded()))
        return number, name, matched.profile.model_dump_json()

    async def check_session(self, device_id: str, session_number: int) -> None:
        """Raise Superseded where a session is not the device's newest, NotFound where there is no such device."""
        await self._database.read(lambda session: check_session(session, device_id, session_number))

    def attend(self, device_id: str, session_number: int) -> asyncio.Queue[work_pb2.AttendResponse]:
        """The messages of a session; the device counts as online until `leave`. Raises Superseded for an older session."""
        present = self._attending.get(device_id)
        if present is not None and present[0] > session_number:
            raise Superseded(_ANOTHER)
        queue: asyncio.Queue[work_pb2.AttendResponse] = asyncio.Queue()
        self._attending[device_id] = (session_number, queue)
        self._away_since.pop(device_id, None)
        queue.put_nowait(work_pb2.AttendResponse(work_available=work_pb2.WorkAvailable()))
        return queue

    async def leave(self, device_id: str, session_number: int) -> None:
        """The stream of a session has ended."""
        present = self._attending.get(device_id)
        if present is not None and present[0] == session_number:
            del self._attending[device_id]
            self._away_since[device_id] = time.monotonic()
            await self._database.write(lambda session: _seen(session, device_id))

    def wake(self, device_id: str) -> None:
        """Tell a device that there may be work."""
        self._tell(device_id, work_pb2.AttendResponse(work_available=work_pb2.WorkAvailable()))

    def cancel(self, device_id: str, task_id: str) -> None:
        """Tell a device to stop a task."""
        self._tell(device_id, work_pb2.AttendResponse(cancel_task=work_pb2.CancelTask(task_id=task_id)))

    def _tell(self, device_id: str, message: work_pb2.AttendResponse) -> None:
        present = self._attending.get(device_id)
        if present is not None:
            present[1].put_nowait(message)

    def online(self, device_id: str) -> bool:
        """Whether a session's stream is open."""
        return device_id in self._attending

    def away_s(self, device_id: str) -> float:
        """For how long the device has been away, as far as this process knows."""
        if self.online(device_id):
            return 0.0
        return time.monotonic() - self._away_since.get(device_id, self._started)

    async def get(self, text: str) -> devices_pb2.Device:
        """One device by name or id."""
        device = await self._database.read(
            lambda session: self._message(session, find_device(session, text), in_full=True)
        )
        if device.profile:
            declared = load_profiles().get(device.profile)
            profile = declared or match(facts_of(device.snapshot)).profile
            device.profile_json = profile.model_dump_json()
        return device

    async def all(self, labels: Sequence[str] = ()) -> list[devices_pb2.Device]:
        """Devices that bear all the labels, by name."""

        def read(session: Session) -> list[devices_pb2.Device]:
            rows = session.scalars(select(DeviceRow).order_by(DeviceRow.name))
            return [self._message(session, row) for row in rows if set(labels) <= set(row.labels)]

        return await self._database.read(read)

    async def set_labels(self, text: str, labels: Sequence[str]) -> devices_pb2.Device:
        """Replace a device's labels."""
        check_labels(labels)

        def change(session: Session) -> devices_pb2.Device:
            row = find_device(session, text)
            row.labels = sorted(set(labels))
            return self._message(session, row)

        return await self._database.write(change)

    async def set_paused(self, text: str, paused: bool) -> devices_pb2.Device:
        """Give a device no new work, or give it work again."""

        def change(session: Session) -> devices_pb2.Device:
            row = find_device(session, text)
            row.paused = paused
            return self._message(session, row)

        device = await self._database.write(change)
        self.wake(device.device_id)
        return device

    async def set_hours(self, text: str, hours: Sequence[str]) -> list[devices_pb2.Device]:
        """Give a device, or all that bear a label now, the hours of their work. Raises InvalidInput, NotFound."""
        for window in hours:
            parse_window(window)

        def change(session: Session) -> list[devices_pb2.Device]:
            rows = find_devices(session, [text])
            for row in rows:
                row.hours = [window.strip() for window in hours]
            return [self._message(session, row) for row in rows]

        devices = await self._database.write(change)
        for device in devices:
            self.wake(device.device_id)
        return devices

    async def check(self, text: str) -> devices_pb2.Device:
        """Ask for a health check as soon as a device is free. Raises NotFound, or Conflict where it cannot be checked."""

        def change(session: Session) -> devices_pb2.Device:
            row = find_device(session, text)
            want_check(session, row)
            return self._message(session, row, in_full=True)

        device = await self._database.write(change)
        self.wake(device.device_id)
        return device

    async def clear(self, text: str, *, forget_history: bool = False) -> devices_pb2.Device:
        """Give a device that was set aside work again. Raises NotFound, or Conflict where it is not set aside."""

        def change(session: Session) -> devices_pb2.Device:
            row = find_device(session, text)
            clear(session, row, forget_history=forget_history)
            session.flush()
            return self._message(session, row, in_full=True)

        device = await self._database.write(change)
        self.wake(device.device_id)
        return device

    def _message(self, session: Session, row: DeviceRow, *, in_full: bool = False) -> devices_pb2.Device:
        state = devices_pb2.DEVICE_STATE_OFFLINE if row.session_number else devices_pb2.DEVICE_STATE_ENROLLED
        message = devices_pb2.Device(
            device_id=row.id,
            name=row.name,
            labels=row.labels,
            state=devices_pb2.DEVICE_STATE_ONLINE if self.online(row.id) else state,
            paused=row.paused,
            hours=row.hours,
            within_hours=within_hours(row.hours, datetime.now(timezone.utc)),
            profile=row.profile,
            profile_reason=row.profile_reason,
            agent_version=row.agent_version,
            snapshot_id=row.snapshot_id or "",
            enrolled_unix_ms=row.enrolled_ms,
            last_seen_unix_ms=now_ms() if self.online(row.id) else row.last_seen_ms,
        )
        snapshot = read_snapshot(session, row)
        if snapshot is not None:
            message.snapshot.CopyFrom(snapshot)
            message.emulated = snapshot.emulated
        task = session.scalars(select(TaskRow.id).where(TaskRow.device_id == row.id, TaskRow.state == "leased")).first()
        message.current_task_id = task or ""
        describe(session, row, message, self._check_every_ms, in_full=in_full)
        return message


def check_session(session: Session, device_id: str, session_number: int) -> DeviceRow:
    """The device's row, if this is its newest session. Raises Superseded or NotFound."""
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise NotFound("this device is not registered here any more; enrol it again with a new token")
    if row.session_number != session_number:
        raise Superseded(_ANOTHER)
    return row


def check_device_name(name: str) -> None:
    """Raise InvalidInput for what cannot be a device's name."""
    if not _NAME.fullmatch(name) or name == "all":
        raise InvalidInput(
            f"'{name[:80]}' cannot be a device's name; use letters, digits, '-', '_' and '.'", field="name"
        )


def check_labels(labels: Sequence[str]) -> None:
    """Raise InvalidInput for what cannot be a device's label."""
    for label in labels:
        if not _LABEL.fullmatch(label) or label == "all":
            raise InvalidInput(
                f"'{label[:80]}' cannot be a label; use letters, digits, '-', '_', '.', '='", field="labels"
            )


def snapshot_key(snapshot: snapshot_pb2.DeviceSnapshot) -> str:
    """The digest of what makes a device a different one; free disk space does not."""
    lasting = snapshot_pb2.DeviceSnapshot()
    lasting.CopyFrom(snapshot)
    lasting.ClearField("disk_free_bytes")
    return sha256_bytes(lasting.SerializeToString(deterministic=True))


def _seen(session: Session, device_id: str) -> None:
    row = session.get(DeviceRow, device_id)
    if row is not None:
        row.last_seen_ms = now_ms()
