"""gRPC channel and server options, in one place with their reasons."""

from __future__ import annotations

from typing import Any, Final

import grpc

# The server's certificate always bears this name, whatever address it is reached by: the CA is the fleet's own and
# certifies no other server, so the address carries no trust, and moving a server needs no new certificate.
SERVER_NAME: Final = "fleetfit-server"

# gRPC refuses messages over 4 MiB by default; that limit stays, and content travels in smaller chunks. What a lost link takes
# along is the chunk that was on its way: over 64 kB/s this one takes 4 s, and a link that holds no longer never delivers any.
CHUNK_BYTES: Final = 256 << 10

_KEEPALIVE: Final[list[tuple[str, Any]]] = [
    # Off by default. Routers forget idle connections after some minutes; 20 s and the 10 s below also bound how long a dead peer
    # looks alive.
    ("grpc.keepalive_time_ms", 20_000),
    # The time for the answer to a ping. Without it a peer whose kernel, or whose router, still takes our bytes is waited for
    # a minute, whatever the line below says (tried with grpc 1.85 and a stopped process).
    ("grpc.http2.ping_timeout_ms", 10_000),
    # This becomes TCP_USER_TIMEOUT: what lies in the send buffer of a slow link may well take more than 10 s.
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A window that grows by measuring holds half a minute of a link with 64 kB/s, and answers to pings wait behind it. This one
    # gives 10 MB/s over 50 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 512 << 10),
]

SERVER_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_KEEPALIVE,
    # Without this the server answers our own agents' pings with GOAWAY "too many pings": its default is one in 5 min.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Two servers must never share a port silently.
    ("grpc.so_reuseport", 0),
]

CLIENT_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_KEEPALIVE,
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.default_authority", SERVER_NAME),
    # A server that restarts should be found again within seconds, not after the default two minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


def agent_credentials(ca_pem: bytes, key_pem: bytes, certificate_pem: bytes) -> grpc.ChannelCredentials:
    """Credentials for mutual TLS, as an agent."""
    return grpc.ssl_channel_credentials(ca_pem, key_pem, certificate_pem)


def people_credentials(ca_pem: bytes) -> grpc.ChannelCredentials:
    """Credentials that trust the fleet's CA alone; identity travels as a bearer token."""
    return grpc.ssl_channel_credentials(ca_pem)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Call metadata that carry a person's token."""
    return (("authorization", f"Bearer {token}"),)
