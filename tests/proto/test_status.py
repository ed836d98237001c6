from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.errors import ChildFailed, FleetfitError, InvalidRecipe, NotFound, Unavailable, error_types
from fleetfit.proto.status import from_rpc_error, status_code, to_status, trailing_metadata

SIMPLE = [kind for kind in error_types().values() if kind is not ChildFailed]


class _RpcError(grpc.RpcError):
    """What a gRPC call raises, as far as the translation looks at it."""

    def __init__(self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, bytes], ...] = ()) -> None:
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._metadata


@given(kind=st.sampled_from(SIMPLE), message=st.text(max_size=200), field=st.text(max_size=20))
def test_an_error_survives_the_wire(kind: type[FleetfitError], message: str, field: str) -> None:
    sent = kind(message, field=field, private="never travels")
    got = from_rpc_error(_RpcError(status_code(sent), message, trailing_metadata(sent)))
    assert (type(got), got.message, got.field, got.private) == (kind, message, field, "")


def test_the_private_part_never_travels() -> None:
    error = NotFound("no model 'a'; `fleetfit models list` shows them", private="table scan in /var/db")
    assert b"/var/db" not in to_status(error).SerializeToString()


@pytest.mark.parametrize("kind", error_types().values(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_that_grpc_knows(kind: type[FleetfitError]) -> None:
    assert kind.status in grpc.StatusCode.__members__


def test_a_reason_of_a_newer_server_becomes_the_nearest_known_error() -> None:
    status = to_status(InvalidRecipe("no"))
    status.details[0].value = status.details[0].value.replace(b"INVALID_RECIPE", b"INVALID_RECIPF")
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    got = from_rpc_error(_RpcError(grpc.StatusCode.INVALID_ARGUMENT, "no", metadata))
    assert got.status == "INVALID_ARGUMENT"
    assert got.message == "no"


def test_a_server_that_is_not_there() -> None:
    async def call() -> None:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            await channel.unary_unary("/fleetfit.v1.Devices/ListDevices")(b"", timeout=20)

    with pytest.raises(grpc.RpcError) as raised:
        asyncio.run(call())
    error = from_rpc_error(raised.value, peer="the server at 127.0.0.1:1")
    assert isinstance(error, Unavailable)
    assert error.message.startswith("the server at 127.0.0.1:1 cannot be reached")


@pytest.mark.parametrize("said", ["certificate is not yet valid", "certificate has expired"])
def test_a_certificate_that_is_good_at_another_time_is_a_matter_of_clocks(said: str) -> None:
    text = f"Tls handshake failed: OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: {said}: OK"
    error = from_rpc_error(_RpcError(grpc.StatusCode.UNAVAILABLE, text), peer="the server at pi:7601")
    assert isinstance(error, Unavailable)
    assert "the certificate of the server at pi:7601 is not valid; set the clock, here or there" in error.message
    # By these words an agent knows another fleet's server, and gives up.
    assert "CERTIFICATE_VERIFY_FAILED" not in error.private
