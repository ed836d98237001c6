"""Why a variant cannot be trained further, in sentences; the way over the wire is in test_jobs.py of the services."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import CompressFacts
from fleetfit.core.errors import Conflict, FleetfitError, InvalidInput, NotFound
from fleetfit.server.engine.variants import find_variant
from fleetfit.server.storage.database import Database
from fleetfit.server.storage.tables import ModelRow, VariantRow

OLD = CompressFacts(lineage=[], builds=[], parameters=1, macs=1, environment={})
VARIANTS = {"old": "aaaaaa11", "twin": "aaaaaa22", "waiting": "bbbbbb11", "failed": "cccccc11", "onnx": "dddddd11"}


def fill(session: Session) -> None:
    for form in ("pt2", "onnx"):
        session.add(
            ModelRow(
                id=form, owner="local", name=form, version=1, format=form, sha256="0" * 64, size_bytes=1, state="accepted",
                refusal="", created_ms=1,
            )
        )  # fmt: skip
    session.flush()
    for name, key in VARIANTS.items():
        state = name if name in ("waiting", "failed") else "done"
        session.add(
            VariantRow(
                key=key.ljust(64, "0"), model_id="onnx" if name == "onnx" else "pt2", dataset_id=None, recipe="", seed=0,
                state=state, attempts=1, reason="it was too large" if name == "failed" else "",
                facts=OLD.model_dump() if state == "done" else None, seconds=1.0, held=None, created_ms=1,
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "owner", "kind", "said"),
    [
        (VARIANTS["old"], "local", Conflict, "older version.*another --seed"),
        (VARIANTS["waiting"], "local", Conflict, "not ready yet"),
        (VARIANTS["failed"], "local", Conflict, "could not be made: it was too large"),
        (VARIANTS["onnx"], "local", Conflict, "ONNX model, which has no layers"),
        ("aaaaaa", "local", InvalidInput, r"several variants.*\(aaaaaa1100, aaaaaa2200\)"),
        ("aaaaa", "local", InvalidInput, "too short"),
        ("aaaa%a", "local", NotFound, "there is no variant"),
        ("bbbbbx1100", "local", NotFound, "did you mean bbbbbb1100"),
        (VARIANTS["old"], "another", NotFound, "there is no variant 'aaaaaa11'; `fleetfit report"),
    ],
)
def test_what_cannot_be_trained_further(
    database: Database, text: str, owner: str, kind: type[FleetfitError], said: str
) -> None:
    database.write_now(fill)
    with pytest.raises(kind, match=said):
        database.read_now(lambda session: find_variant(session, text, owner))
