"""Everything that fleetfit raises on purpose.

    FleetfitError
    ├── InvalidInput            something the user gave is wrong; it says what, and what to do
    │   ├── InvalidModel
    │   ├── InvalidData
    │   ├── InvalidRecipe
    │   └── InvalidProfile
    ├── NotFound                nothing has that name
    ├── AlreadyExists
    ├── Conflict                the state does not allow it (an old lease, a finished job)
    │   ├── LeaseLost
    │   └── Superseded
    ├── OutOfReach              what is being made cannot meet its limits any more
    ├── Unauthenticated         no identity, or a wrong one
    ├── PermissionDenied        a known identity that may not do this
    ├── VersionTooOld           the peer's version is below the stated minimum
    ├── ExhaustedResource       disk, memory, quota
    ├── Unavailable             the peer cannot be reached now; trying again may help
    ├── TimedOut
    ├── Cancelled
    ├── UnsupportedHere         this machine or environment lacks a part; it says which to install
    ├── IntegrityError          content differs from its digest
    ├── ChildFailed             a child process ended badly; `outcome` says how
    └── InternalError           a bug of ours

The message is for people: one sentence that says what was wrong, with what, and what to do next. What belongs in the
log but not before the public goes into `private`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FleetfitError(Exception):
    """Root of all errors raised on purpose.

    `code` is the stable, machine-readable reason. `status` is the name of the gRPC status that carries it over the
    wire. `field` names the argument at fault, where there is one.
    """

    code: ClassVar[str] = "ERROR"
    status: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, field: str = "", private: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.private = private


class InvalidInput(FleetfitError):
    """Something the user gave is wrong."""

    code = "INVALID_INPUT"
    status = "INVALID_ARGUMENT"


class UsageError(InvalidInput):
    """An option whose value cannot be meant; the command line ends with its exit code for wrong usage."""

    code = "USAGE"


class InvalidModel(InvalidInput):
    """A model that cannot be accepted."""

    code = "INVALID_MODEL"


class InvalidData(InvalidInput):
    """Arrays that cannot be accepted, or do not fit the model."""

    code = "INVALID_DATA"


class InvalidRecipe(InvalidInput):
    """A recipe with an unknown pass, key or value, or an order that cannot work."""

    code = "INVALID_RECIPE"


class InvalidProfile(InvalidInput):
    """A device profile that breaks its schema."""

    code = "INVALID_PROFILE"


class NotFound(FleetfitError):
    """Nothing has that name."""

    code = "NOT_FOUND"
    status = "NOT_FOUND"


class AlreadyExists(FleetfitError):
    """The name is taken."""

    code = "ALREADY_EXISTS"
    status = "ALREADY_EXISTS"


class Conflict(FleetfitError):
    """The present state does not allow the request."""

    code = "CONFLICT"
    status = "FAILED_PRECONDITION"


class LeaseLost(Conflict):
    """The task was leased again since; this holder's word no longer counts."""

    code = "LEASE_LOST"
    status = "ABORTED"


class Superseded(Conflict):
    """A newer session of the same device exists; this one ends."""

    code = "SUPERSEDED"
    status = "ABORTED"


class OutOfReach(FleetfitError):
    """What is being made cannot meet its limits any more; `reasons` has one for each of those it was made for."""

    code = "OUT_OF_REACH"
    status = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, reasons: Sequence[str] = (), field: str = "", private: str = "") -> None:
        super().__init__(message, field=field, private=private)
        self.reasons = tuple(reasons)


class Unauthenticated(FleetfitError):
    """No identity was shown, or a wrong one."""

    code = "UNAUTHENTICATED"
    status = "UNAUTHENTICATED"


class PermissionDenied(FleetfitError):
    """A known identity that may not do this."""

    code = "PERMISSION_DENIED"
    status = "PERMISSION_DENIED"


class VersionTooOld(FleetfitError):
    """The peer's version is below the stated minimum."""

    code = "VERSION_TOO_OLD"
    status = "FAILED_PRECONDITION"


class ExhaustedResource(FleetfitError):
    """No disk, memory or quota is left for the request."""

    code = "RESOURCE_EXHAUSTED"
    status = "RESOURCE_EXHAUSTED"


class Unavailable(FleetfitError):
    """The peer cannot be reached now; trying again may help."""

    code = "UNAVAILABLE"
    status = "UNAVAILABLE"


class TimedOut(FleetfitError):
    """It took longer than it was given."""

    code = "TIMED_OUT"
    status = "DEADLINE_EXCEEDED"


class Cancelled(FleetfitError):
    """Someone asked for it to stop."""

    code = "CANCELLED"
    status = "CANCELLED"


class UnsupportedHere(FleetfitError):
    """A part is missing on this machine or in this environment; the message says which, and how to get it."""

    code = "UNSUPPORTED_HERE"
    status = "UNIMPLEMENTED"


class IntegrityError(FleetfitError):
    """Content differs from its digest."""

    code = "INTEGRITY"
    status = "DATA_LOSS"


class ChildFailed(FleetfitError):
    """A child process ended badly. `outcome` is `crashed`, `out_of_memory`, `timed_out` or `cancelled`."""

    code = "CHILD_FAILED"
    status = "INTERNAL"

    def __init__(self, message: str, *, outcome: str, private: str = "") -> None:
        super().__init__(message, private=private)
        self.outcome = outcome


class InternalError(FleetfitError):
    """A bug of ours."""

    code = "INTERNAL"
    status = "INTERNAL"


def error_types() -> dict[str, type[FleetfitError]]:
    """Every error type by its code: what a receiver uses to raise again what the sender raised."""
    found: dict[str, type[FleetfitError]] = {}
    stack: list[type[FleetfitError]] = [FleetfitError]
    while stack:
        kind = stack.pop()
        found[kind.code] = kind
        stack.extend(kind.__subclasses__())
    return found


def rebuild(code: str, message: str, *, field: str = "", status: str = "") -> FleetfitError:
    """The error that a code and message from elsewhere stand for.

    An unknown code (from a newer peer) becomes the nearest known type by `status`, else the root.
    """
    types = error_types()
    kind = types.get(code)
    if kind is None:
        kind = next((t for t in types.values() if t.status == status and t is not ChildFailed), FleetfitError)
    if kind is ChildFailed:
        return ChildFailed(message, outcome="crashed")
    return kind(message, field=field)
