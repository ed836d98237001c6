from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timezone

import pytest

from fleetfit.core.errors import InvalidInput, NotFound, PermissionDenied, Superseded
from fleetfit.proto.v1 import devices_pb2, snapshot_pb2, work_pb2
from fleetfit.server.engine.fleet import Fleet, check_session, snapshot_key
from fleetfit.server.storage.database import Database

MakeSnapshot = Callable[..., snapshot_pb2.DeviceSnapshot]


@pytest.fixture
def fleet(database: Database) -> Fleet:
    return Fleet(database)


def test_names_are_made_plain_and_unique(fleet: Fleet) -> None:
    async def run() -> list[str]:
        wanted = ["pi", "pi", "../../pi 4", "", "all"]
        return [(await fleet.register(name, [], "1"))[1] for name in wanted]

    names = asyncio.run(run())
    assert names == ["pi", "pi-2", "pi-4", "device", "all-2"]


def test_the_newest_session_wins(fleet: Fleet, database: Database, make_snapshot: MakeSnapshot) -> None:
    async def run() -> None:
        device, _ = await fleet.register("pi", [], "1")
        hello = work_pb2.HelloRequest(agent_version="1", snapshot=make_snapshot())
        first, name, profile = await fleet.hello(device, hello)
        assert name == "pi"
        assert profile
        old = fleet.attend(device, first)
        assert old.get_nowait().HasField("work_available")
        second, _, _ = await fleet.hello(device, hello)
        assert second > first
        assert old.get_nowait().HasField("superseded")
        fleet.attend(device, second)
        with pytest.raises(Superseded):
            fleet.attend(device, first)
        # The old stream's end is not the device's.
        await fleet.leave(device, first)
        assert fleet.online(device)
        with pytest.raises(Superseded):
            await database.read(lambda session: check_session(session, device, first))
        await fleet.leave(device, second)
        assert not fleet.online(device)

    asyncio.run(run())


def test_a_device_is_shown_with_its_profile(fleet: Fleet, make_snapshot: MakeSnapshot) -> None:
    async def run() -> None:
        device, _ = await fleet.register("board", [], "1")
        assert not (await fleet.get("board")).profile_json
        snapshot = make_snapshot()
        snapshot.machine, snapshot.product = "aarch64", "EC2 instance"
        snapshot.processor.arm_implementer, snapshot.processor.arm_part = "0x41", "0xd4f"
        await fleet.hello(device, work_pb2.HelloRequest(agent_version="1", snapshot=snapshot))
        shown = await fleet.get("board")
        assert shown.profile == "graviton-4" and "its firmware calls it 'EC2 instance'" in shown.profile_reason
        assert json.loads(shown.profile_json)["agent"]["status"] == "expected"
        assert [one.profile_json for one in await fleet.all()] == [""], "lists stay small"
        snapshot.processor.arm_part = "0xabc"
        await fleet.hello(device, work_pb2.HelloRequest(agent_version="1", snapshot=snapshot))
        made = json.loads((await fleet.get("board")).profile_json)
        assert (made["name"], made["agent"]["status"]) == ("generic", "unknown")
        assert "what its agent found is all that is known" in made["notes"][0]

    asyncio.run(run())


def test_a_restarted_server_does_not_count_the_time_it_was_away(fleet: Fleet, database: Database) -> None:
    async def run() -> None:
        device, _ = await fleet.register("pi", [], "1")
        await asyncio.sleep(0.05)
        assert fleet.away_s(device) > 0.04
        assert Fleet(database).away_s(device) < 0.04

    asyncio.run(run())


def test_facts_are_kept_once_and_changed_facts_anew(fleet: Fleet, make_snapshot: MakeSnapshot) -> None:
    async def run() -> None:
        device, _ = await fleet.register("pi", [], "1")
        seen = []
        for snapshot in (make_snapshot(), make_snapshot(), make_snapshot(threads=2)):
            await fleet.hello(device, work_pb2.HelloRequest(agent_version="2", snapshot=snapshot))
            seen.append((await fleet.get("pi")).snapshot_id)
        assert seen[0] == seen[1] != seen[2]
        assert (await fleet.get(device)).snapshot.threads == 2

    asyncio.run(run())


def test_free_disk_space_does_not_make_another_device(make_snapshot: MakeSnapshot) -> None:
    fuller = make_snapshot()
    fuller.disk_free_bytes = 5
    assert snapshot_key(fuller) == snapshot_key(make_snapshot())
    assert snapshot_key(make_snapshot(cores=4)) != snapshot_key(make_snapshot())


def test_labels_and_pausing(fleet: Fleet) -> None:
    async def run() -> None:
        await fleet.register("one", ["lab"], "1")
        await fleet.register("two", [], "1")
        assert [d.name for d in await fleet.all(["lab"])] == ["one"]
        changed = await fleet.set_labels("two", ["lab", "lab", "arm=v8"])
        assert list(changed.labels) == ["arm=v8", "lab"]
        assert [d.name for d in await fleet.all(["lab"])] == ["one", "two"]
        for label in ("all", "", "a b", "x" * 65):
            with pytest.raises(InvalidInput, match="cannot be a label"):
                await fleet.set_labels("two", [label])
        assert (await fleet.set_paused("one", True)).paused
        assert not (await fleet.set_paused("one", False)).paused
        with pytest.raises(NotFound, match="did you mean 'two'"):
            await fleet.set_paused("twoo", True)
        assert (await fleet.get("one")).state == devices_pb2.DEVICE_STATE_ENROLLED

    asyncio.run(run())


def test_hours_are_given_to_a_device_or_to_all_of_a_label(fleet: Fleet) -> None:
    async def run() -> None:
        for name, labels in (("one", ["lab"]), ("two", ["lab"]), ("three", [])):
            await fleet.register(name, labels, "1")
        assert (await fleet.get("one")).within_hours and not (await fleet.get("one")).hours
        never_now = "00:00-00:01" if datetime.now(timezone.utc).hour else "12:00-12:01"
        changed = await fleet.set_hours("lab", [never_now])
        assert [(d.name, list(d.hours), d.within_hours) for d in changed] == [
            ("one", [never_now], False),
            ("two", [never_now], False),
        ]
        assert (await fleet.get("three")).within_hours
        await fleet.set_hours("two", ["00:00-24:00", never_now])
        assert (await fleet.get("two")).within_hours
        (cleared,) = await fleet.set_hours("one", [])
        assert cleared.within_hours and not cleared.hours
        with pytest.raises(InvalidInput, match="are no hours"):
            await fleet.set_hours("one", ["at night"])
        with pytest.raises(NotFound, match="device or label 'nobody'"):
            await fleet.set_hours("nobody", [])

    asyncio.run(run())


def test_a_device_that_is_not_registered_cannot_connect(fleet: Fleet) -> None:
    with pytest.raises(PermissionDenied, match="enrol it again"):
        asyncio.run(fleet.hello("nobody", work_pb2.HelloRequest()))
