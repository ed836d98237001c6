"""A scripted server and an agent that serves it, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fleetfit.agent.session import Agent
from fleetfit.agent.spool import Spool
from fleetfit.proto.v1 import snapshot_pb2

from .desk import Desk


async def probe() -> snapshot_pb2.DeviceSnapshot:
    return snapshot_pb2.DeviceSnapshot(machine="x86_64")


class Stage:
    """A desk and an agent that serves it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.desk = Desk(folder)
        self.agent: asyncio.Task[None] | None = None

    def begin(self, **options: Any) -> asyncio.Task[None]:
        agent = Agent(self.desk.enrol(), self.state, probe, cache_bytes=1 << 20, **options)
        self.agent = asyncio.create_task(agent.run())
        return self.agent

    @property
    def spooled(self) -> list[str]:
        return [result.task_id for result in Spool(self.state / "spool")]


def play(folder: Path, scene: Callable[[Stage, Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Stage(folder)
        await stage.desk.open()
        try:
            async with asyncio.timeout(30):
                await scene(stage, stage.desk)
        finally:
            if stage.agent is not None:
                stage.agent.cancel()
                await asyncio.gather(stage.agent, return_exceptions=True)
            await stage.desk.shut()

    asyncio.run(run())
