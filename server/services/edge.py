"""The edge of the server: every call passes here, and no exception leaves as anything but a status of ours."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
from sqlalchemy.exc import OperationalError

from fleetfit.core.errors import ExhaustedResource, FleetfitError, InternalError, TimedOut, Unavailable
from fleetfit.proto.status import status_code, trailing_metadata

_log: Final = logging.getLogger("fleetfit.server")
Context = grpc.aio.ServicerContext[Any, Any]
# Raises where a call is not allowed: gets the method's full name and the call's context.
Admit = Callable[[str, Context], None]
# A caller that sets no deadline must not hold a handler for ever.
UNARY_LIMIT_S: Final = 120.0


class Edge(grpc.aio.ServerInterceptor):
    """Admits calls, bounds their time, and translates what they raise."""

    def __init__(self, admit: Admit, *, unary_limit_s: float = UNARY_LIMIT_S) -> None:
        self._admit = admit
        self._unary_limit_s = unary_limit_s
        self._streams: set[asyncio.Task[Any]] = set()
        self._stopping = False

    @property
    def open_streams(self) -> int:
        """Calls with a stream of answers that are open now."""
        return len(self._streams)

    def end_streams(self) -> None:
        """Tell every open stream, and every later one, that the server stops.

        `grpc.aio.Server.stop` alone waits out its whole grace period for them, or longer (grpc/grpc#37239).
        """
        self._stopping = True
        for task in self._streams:
            task.cancel()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._answer(method, handler.unary_unary, True), *coders)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._answer(method, handler.stream_unary, False), *coders)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), *coders)
        return grpc.stream_stream_rpc_method_handler(self._stream(method, handler.stream_stream), *coders)

    def _answer(self, method: str, behave: Callable[..., Awaitable[Any]], bounded: bool) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with self._translated(method, context):
                self._admit(method, context)
                async with asyncio.timeout(self._unary_limit_s if bounded else None):
                    return await behave(request, context)

        return call

    def _stream(self, method: str, behave: Callable[..., Any]) -> Any:
        # A coroutine that writes, not a generator: when the peer goes, a cancelled coroutine runs its `finally` at once,
        # a generator only when it is collected.
        async def call(request: Any, context: Context) -> None:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - a coroutine that runs is in a task
            async with self._translated(method, context):
                if self._stopping:
                    raise _stopping()
                self._streams.add(task)
                try:
                    self._admit(method, context)
                    if not inspect.isasyncgenfunction(behave):
                        await behave(request, context)
                        return
                    async with aclosing(behave(request, context)) as answers:
                        async for answer in answers:
                            await context.write(answer)
                finally:
                    self._streams.discard(task)

        return call

    @asynccontextmanager
    async def _translated(self, method: str, context: Context) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if not self._stopping or context.cancelled():
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            await _abort(context, _stopping())
        except Exception as error:
            fault = explain(error, method)
            _log.info("%s: %s %s %s", method, fault.code, fault.message, fault.private)
            await _abort(context, fault)


def explain(error: Exception, what: str) -> FleetfitError:
    """The error of ours that stands for any exception. What is a bug goes into the log under an id, and only the id out."""
    if isinstance(error, FleetfitError):
        return error
    if isinstance(error, grpc.aio.InternalError):
        # What gRPC raises where an answer cannot be written any more: the caller's connection broke meanwhile.
        return Unavailable("the caller went away before it was answered", private=str(error))
    if isinstance(error, TimeoutError):
        return TimedOut("the server was too busy to answer in time; try again later")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExhaustedResource("the server's disk is full; make room in its state folder and try again")
    if isinstance(error, OperationalError) and "locked" in str(error):
        return Unavailable("the server's database is busy; try again", private=str(error))
    number = secrets.token_hex(4)
    _log.error("bug %s in %s", number, what, exc_info=error)
    return InternalError(f"the server met a bug of its own; its log says more under the id {number}, please report it")


def _stopping() -> FleetfitError:
    return Unavailable("the server is stopping; try again when it runs")


async def _abort(context: Context, error: FleetfitError) -> None:
    await context.abort(status_code(error), error.message, trailing_metadata(error))
