"""Who is too old to talk to, and what to do about it."""

from __future__ import annotations

import fleetfit
from fleetfit.core.errors import VersionTooOld
from fleetfit.proto.versions import MINIMUM_PROTOCOL_VERSION, PROTOCOL_VERSION

_UPGRADE_AGENT = "pip install --upgrade fleetfit"
_UPGRADE_SERVER = "pip install --upgrade 'fleetfit[server]'"


def check_versions(agent_version: str, newest: int, oldest: int = 0) -> None:
    """Raise VersionTooOld where agent and server have no protocol version in common.

    `newest` and `oldest` are what the agent speaks; an agent that states none is older than all.
    """
    if newest < MINIMUM_PROTOCOL_VERSION:
        raise VersionTooOld(
            f"the agent ({agent_version[:40] or 'of unknown version'}) speaks protocol {newest}, and this server needs "
            f"{MINIMUM_PROTOCOL_VERSION} or newer; run `{_UPGRADE_AGENT}` on the device and start the agent again"
        )
    if oldest > PROTOCOL_VERSION:
        raise VersionTooOld(
            f"this server ({fleetfit.__version__}) speaks protocol {PROTOCOL_VERSION}, and the agent needs {oldest} or newer; "
            f"run `{_UPGRADE_SERVER}` where the server is and start it again"
        )
