from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from fleetfit.proto.channels import SERVER_OPTIONS

CLIENT = """
import grpc, sys
with grpc.insecure_channel(sys.argv[1]) as channel:
    for _ in channel.unary_stream("/any/thing")(b""):
        print("connected", flush=True)
"""


def test_a_peer_that_answers_no_more_while_its_kernel_does_is_given_up() -> None:
    """Ten times as fast as in service: by gRPC's own setting it would be believed for a minute."""
    options = [(name, value // 10 if name.endswith("_ms") else value) for name, value in SERVER_OPTIONS]

    async def run() -> None:
        ended = asyncio.Event()

        async def attend(request: bytes, context: Any) -> AsyncIterator[bytes]:
            try:
                yield b"there"
                await asyncio.sleep(600)
            finally:
                ended.set()

        class Everything(grpc.GenericRpcHandler):
            def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
                return grpc.unary_stream_rpc_method_handler(attend)

        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((Everything(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        command = [sys.executable, "-c", CLIENT, f"127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            try:
                assert client.stdout is not None
                await asyncio.to_thread(client.stdout.readline)
                client.send_signal(signal.SIGSTOP)
                async with asyncio.timeout(30):
                    await ended.wait()
            finally:
                client.kill()
                await server.stop(None)

    asyncio.run(run())
