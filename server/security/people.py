"""People's tokens. For now everybody who holds one may do everything; roles come later."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fleetfit.core.errors import Unauthenticated
from fleetfit.server.security.files import write_private
from fleetfit.server.security.secrets import is_whole, new_secret, stored_form
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.ids import now_ms
from fleetfit.server.storage.tables import LOCAL_OWNER, PersonRow

# Whose token is printed once, for people on other machines.
REMOTE: Final = "remote"
_ADVICE: Final = (
    "set FLEETFIT_TOKEN to the one that the server printed, or make another with `fleetfit server --new-token`"
)


class People:
    """Who may use the people's listener. Digests of their tokens are in the database, and here for every call."""

    def __init__(self, database: Database, ca_digest: str) -> None:
        self._database = database
        self._ca_digest = ca_digest
        self._names: dict[str, str] = {}

    def load(self) -> None:
        """Read who there is."""
        query = select(PersonRow)
        rows = self._database.read_now(lambda session: [(r.token_sha256, r.name) for r in session.scalars(query)])
        self._names = dict(rows)

    def local_token(self, file: Path) -> str:
        """The token of this machine's user. It is kept in `file`, beside the CA's key, so that it outlives restarts."""
        secret = file.read_text().strip() if file.exists() else ""
        if stored_form(secret) not in self._names:
            secret = self._renew(LOCAL_OWNER)
            write_private(file, secret.encode())
        return self._token(secret)

    def remote_token(self, *, renew: bool = False) -> str | None:
        """A token for people on other machines, the first time or when asked to renew it; the older one ends."""
        if REMOTE in self._names.values() and not renew:
            return None
        return self._token(self._renew(REMOTE))

    def identify(self, authorization: str) -> str:
        """Whose token a call bears (`Bearer SECRET`, or `Bearer SECRET.DIGEST`). Raises Unauthenticated."""
        scheme, _, token = authorization.partition(" ")
        secret = token.strip().partition(".")[0]
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(f"this server wants to know who calls; {_ADVICE}")
        name = self._names.get(stored_form(secret))
        if name is None:
            what = "is not one of this server's" if is_whole(secret) else "was changed or cut off on its way here"
            raise Unauthenticated(f"the token {what}; {_ADVICE}")
        return name

    def _renew(self, name: str) -> str:
        secret = new_secret()

        def write(session: Session) -> None:
            session.execute(delete(PersonRow).where(PersonRow.name == name))
            session.add(PersonRow(token_sha256=stored_form(secret), name=name, created_ms=now_ms()))

        self._database.write_now(write)
        self.load()
        return secret

    def _token(self, secret: str) -> str:
        return f"{secret}.{self._ca_digest}"
