"""Who calls: a person by a bearer token, a device by its certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fleetfit.core.errors import Unauthenticated
from fleetfit.server.security.authority import DEVICE_URI
from fleetfit.server.security.people import People
from fleetfit.server.services.edge import Context

# The one-time secret is enrolment's own authorization; health says nothing that an open port does not say.
_OPEN_SERVICES: Final = ("/fleetfit.v1.Enrolment/", "/grpc.health.v1.Health/")


def admit_people(people: People) -> Callable[[str, Context], None]:
    """Lets calls in that bear a person's token, and those that need none."""

    def admit(method: str, context: Context) -> None:
        if method.startswith(_OPEN_SERVICES):
            return
        person_of(context, people)

    return admit


def person_of(context: Context, people: People) -> str:
    """Who calls. Raises Unauthenticated."""
    metadata: Any = context.invocation_metadata() or ()
    values = [value for key, value in metadata if key == "authorization"]
    return people.identify(str(values[0]) if len(values) == 1 else "")


def admit_devices(method: str, context: Context) -> None:
    """Lets calls in whose certificate names a device. TLS has checked already that our CA signed it."""
    if not method.startswith(_OPEN_SERVICES):
        device_of(context)


def device_of(context: Context) -> str:
    """The id of the device that calls. Raises Unauthenticated where its certificate names none."""
    properties = context.auth_context() or {}
    names = {
        name.decode(errors="replace")
        for key in ("x509_uri", "x509_subject_alternative_name")
        for name in properties.get(key, ())
    }
    ids = {name.removeprefix(DEVICE_URI) for name in names if name.startswith(DEVICE_URI)}
    if len(ids) != 1:
        raise Unauthenticated("the certificate names no device; enrol this device with `fleetfit devices enroll`")
    return ids.pop()
