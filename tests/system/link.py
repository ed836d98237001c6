"""A TCP link between an agent and its server that can be cut, that can fall silent, and that can be slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

_PIECE: Final = 8192
# Small, so that what counts as carried has arrived, and a slow link does not deliver what it was given a minute ago.
_BUFFER: Final = 32_768


class Link:
    """Forwards connections from `address` to `target` in a thread of its own.

    All connections share what the link carries. `down_bytes` counts what was carried from the server to the agent.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.address = ""
        self.bytes_per_s: float | None = None
        self.down_bytes = 0
        self.connections = 0
        self._up = True
        self._cut_at: list[tuple[int, float]] = []
        self._silent_at: int | None = None
        self._loses_answers: Callable[[], bool] = lambda: False
        self.lost_bytes = 0
        self._generation = 0
        self._silent_generation = -1
        self._open: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._run(self._listen())

    def close(self) -> None:
        """End everything."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        self._call(self._cut)

    def mend(self) -> None:
        """Let new connections through, in both directions. Those that fell silent stay silent."""
        self._call(self._mend)

    def fall_silent(self) -> None:
        """Carry nothing any more over the connections there are, without closing one. New ones are let through."""
        self._call(self._fall_silent)

    def lose_answers(self, when: Callable[[], bool]) -> None:
        """Carry all that the agent says, and nothing of what the server says while `when` holds, until it is mended."""
        self._loses_answers = when

    def cut_after(self, down_bytes: int, for_s: float) -> None:
        """Cut the link for so long as soon as so many more bytes were carried down. Several are done in turn."""
        at = (self._cut_at[-1][0] if self._cut_at else self.down_bytes) + down_bytes
        self._cut_at.append((at, for_s))

    def silent_after(self, down_bytes: int) -> None:
        """Fall silent as soon as so many more bytes were carried down."""
        self._silent_at = self.down_bytes + down_bytes

    def _call(self, what: Callable[[], None]) -> None:
        async def call() -> None:
            what()

        self._run(call())

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return server

    async def _end(self) -> None:
        self._server.close()
        self._cut()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _cut(self) -> None:
        self._up = False
        for task in self._open:
            task.cancel()

    def _mend(self) -> None:
        self._up, self._loses_answers = True, lambda: False

    def _fall_silent(self) -> None:
        self._silent_generation = self._generation
        self._generation += 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        writers = [writer]
        try:
            if self._up:
                self.connections += 1
                generation = self._generation
                there = socket.socket()
                there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                there.setblocking(False)
                await self._loop.sock_connect(there, (self._host, self._port))
                theirs, to_server = await asyncio.open_connection(sock=there, limit=_BUFFER)
                writers.append(to_server)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
                for one in writers:
                    one.transport.set_write_buffer_limits(high=0)
                await asyncio.gather(
                    self._carry(reader, to_server, generation, down=False),
                    self._carry(theirs, writer, generation, down=True),
                )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            for one in writers:
                # A reset, as a link that goes away has no time for a farewell.
                one.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, generation: int, *, down: bool
    ) -> None:
        while piece := await source.read(_PIECE):
            if self.bytes_per_s is not None:
                async with self._turn:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
            if down and self._loses_answers():
                self.lost_bytes += len(piece)
                continue
            while generation <= self._silent_generation:
                await asyncio.sleep(0.1)
            target.write(piece)
            await target.drain()
            if down:
                self.down_bytes += len(piece)
                self._watch_for_faults()
        # One side has ended in order: so does the other.
        with contextlib.suppress(OSError):
            target.write_eof()

    def _watch_for_faults(self) -> None:
        if self._silent_at is not None and self.down_bytes >= self._silent_at:
            self._silent_at = None
            self._fall_silent()
        if self._cut_at and self.down_bytes >= self._cut_at[0][0]:
            _, for_s = self._cut_at.pop(0)
            self._loop.call_later(for_s, self._mend)
            self._loop.call_soon(self._cut)
