"""One-time tokens: who holds one may become a device, once, until it expires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import update
from sqlalchemy.orm import Session

from fleetfit.core.errors import FleetfitError, InvalidInput, Unauthenticated
from fleetfit.server.security.secrets import is_whole, new_secret, stored_form
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import now_ms
from fleetfit.server.storage.tables import EnrolmentTokenRow

DEFAULT_VALID_MS: Final = 60 * 60 * 1000
LONGEST_VALID_MS: Final = 30 * 24 * 60 * 60 * 1000
_AGAIN: Final = "make a new one with `fleetfit devices enroll`"


@dataclass(frozen=True)
class Grant:
    """What a token allows: a device of this name (may be empty) with these labels."""

    device_name: str
    labels: tuple[str, ...]


class EnrolmentTokens:
    """The tokens of the fleet whose CA has the digest `ca_digest`; only digests of their secrets are kept."""

    def __init__(self, database: Database, ca_digest: str) -> None:
        self._database = database
        self._ca_digest = ca_digest

    async def create(self, name: str, labels: Sequence[str], valid_ms: int = 0) -> tuple[str, int]:
        """A new token and when it expires (milliseconds since 1970). Raises InvalidInput for a validity out of range."""
        if not 0 <= valid_ms <= LONGEST_VALID_MS:
            raise InvalidInput(
                f"a token cannot be valid for {valid_ms / 3_600_000:g} hours; choose up to {LONGEST_VALID_MS // 86_400_000} days",
                field="valid_ms",
            )
        secret = new_secret()
        expires_ms = now_ms() + (valid_ms or DEFAULT_VALID_MS)

        def insert(session: Session) -> None:
            session.add(
                EnrolmentTokenRow(
                    secret_sha256=stored_form(secret),
                    device_name=name,
                    labels=sorted(set(labels)),
                    created_ms=now_ms(),
                    expires_ms=expires_ms,
                    used_ms=None,
                )
            )

        await self._database.write(insert)
        return f"{secret}.{self._ca_digest}", expires_ms

    async def use(self, secret: str) -> Grant:
        """Use a secret up. Raises Unauthenticated, saying whether it was damaged, is unknown, was used, or is too old."""
        if not is_whole(secret):
            raise Unauthenticated(
                "the token was changed or cut off on its way here; copy the whole line again from where it was printed",
                field="secret",
            )
        key = stored_form(secret)

        def take(session: Session) -> Grant | FleetfitError:
            row = session.get(EnrolmentTokenRow, key)
            if row is None:
                return Unauthenticated(f"this server did not make this token; {_AGAIN} on this server", field="secret")
            if row.used_ms is not None:
                return Unauthenticated(
                    f"the token was used before, and a token enrols one device; {_AGAIN} for this device",
                    field="secret",
                )
            if row.expires_ms <= now_ms():
                return Unauthenticated(f"the token has expired; {_AGAIN}", field="secret")
            # Writers take turns, so what was read above still holds; the condition says so where it matters most.
            taken = session.execute(
                update(EnrolmentTokenRow)
                .where(EnrolmentTokenRow.secret_sha256 == key, EnrolmentTokenRow.used_ms.is_(None))
                .values(used_ms=now_ms())
            )
            assert taken.rowcount == 1  # type: ignore[attr-defined]  # noqa: S101
            return Grant(row.device_name, tuple(row.labels))

        result = await self._database.write(take)
        if isinstance(result, FleetfitError):
            raise result
        return result

    async def give_back(self, secret: str) -> None:
        """Make a secret usable again, after the enrolment that used it failed for a reason of the server's."""

        def reset(session: Session) -> None:
            row = session.get(EnrolmentTokenRow, stored_form(secret))
            if row is not None:
                row.used_ms = None

        await self._database.write(reset)
