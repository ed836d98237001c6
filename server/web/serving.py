"""Pages and downloads on a socket, in the server's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from fleetfit.proto.trust import split_address
from fleetfit.server.services.listeners import check_free
from fleetfit.server.web.pages import Source, make_app

_STOP_S: Final = 2


class _Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the server's: it stops the pages itself.
        yield


@asynccontextmanager
async def serve_pages(source: Source, address: str) -> AsyncIterator[str]:
    """Serve the pages; gives the address with the port that was chosen. Raises Conflict where the port is taken."""
    async with serve_app(make_app(source), address) as chosen:
        yield chosen


@asynccontextmanager
async def serve_app(app: ASGIApp, address: str, most_at_once: int | None = None) -> AsyncIterator[str]:
    """Serve an application over HTTP, to `most_at_once` callers. Gives and raises as `serve_pages` does."""
    host, port = split_address(address)
    check_free(host, port)
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listening = socket.create_server((host, port), family=family)
    config = uvicorn.Config(
        app,
        limit_concurrency=most_at_once,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_STOP_S,
    )
    server = _Quiet(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        chosen = listening.getsockname()[1]
        yield f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"
    finally:
        server.should_exit = True
        await serving
        listening.close()
