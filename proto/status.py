"""The one place where our errors become gRPC statuses, and gRPC statuses our errors again.

Over the wire an error is a status with google.rpc details: `ErrorInfo` (reason = the error's code, domain `fleetfit`)
and, where an argument is at fault, `BadRequest`. The private part of an error never travels.
"""

from __future__ import annotations

import time
from typing import Any, Final

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from fleetfit.core.errors import FleetfitError, Unavailable, rebuild

DOMAIN: Final = "fleetfit"
DETAILS_KEY: Final = "grpc-status-details-bin"
# What BoringSSL's verification says of a certificate that is good at another time, within the text of a failed handshake.
_CLOCK_WORDS: Final = ("certificate is not yet valid", "certificate has expired")


def to_status(error: FleetfitError) -> status_pb2.Status:
    """The rich status that carries `error` to the other side."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.status), message=error.message)
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def status_code(error: FleetfitError) -> grpc.StatusCode:
    """The enum value that gRPC uses for `error`."""
    return grpc.StatusCode[error.status]


def trailing_metadata(error: FleetfitError) -> tuple[tuple[str, bytes], ...]:
    """The metadata by which gRPC carries the rich status."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def _details(error: grpc.RpcError) -> bytes | None:
    metadata: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in metadata or ():
        if key == DETAILS_KEY:
            return value if isinstance(value, bytes) else str(value).encode()
    return None


def from_rpc_error(error: grpc.RpcError, *, peer: str = "the server") -> FleetfitError:
    """The error that the other side raised, or `Unavailable` and its like for a fault of the connection."""
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    text = (error.details() if hasattr(error, "details") else None) or ""
    name = code.name if code is not None else "UNKNOWN"
    raw = _details(error)
    if raw is not None:
        status = status_pb2.Status.FromString(raw)
        reason, field = "", ""
        for packed in status.details:
            info = error_details_pb2.ErrorInfo()
            request = error_details_pb2.BadRequest()
            if packed.Unpack(info) and info.domain == DOMAIN:
                reason = info.reason
            elif packed.Unpack(request) and request.field_violations:
                field = request.field_violations[0].field
        return rebuild(reason, status.message, field=field, status=name)
    if code is grpc.StatusCode.UNAVAILABLE and any(words in text for words in _CLOCK_WORDS):
        # The text stays behind: to those who read it, a handshake that failed means another fleet's server.
        return Unavailable(
            f"by this machine's clock, which shows {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, the certificate of "
            f"{peer} is not valid; set the clock, here or there, and try again"
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"{peer} cannot be reached now; check that it runs and try again", private=text)
    return rebuild("", text or f"{peer} answered {name}", status=name)
