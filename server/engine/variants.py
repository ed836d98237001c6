"""The trainable network of a variant, found by the name that reports show."""

from __future__ import annotations

import difflib

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import CompressFacts
from fleetfit.core.digests import short
from fleetfit.core.errors import Conflict, InvalidInput, NotFound
from fleetfit.proto.v1 import common_pb2, models_pb2
from fleetfit.server.engine.states import VariantState
from fleetfit.server.storage.tables import ModelRow, VariantRow

_SHORTEST = 6
_SHOWN = 3


def find_variant(session: Session, text: str, owner: str) -> models_pb2.GetVariantResponse:
    """What a person's variant was made into. Raises NotFound, InvalidInput, or Conflict where there is nothing to train."""
    variant = _named(session, text, owner)
    name = short(variant.key)
    if session.get_one(ModelRow, variant.model_id).format == "onnx":
        raise Conflict(
            f"the variant {name} is of an ONNX model, which has no layers to train; push the model as a .pt2",
            field="variant",
        )
    if variant.state == VariantState.FAILED:
        raise Conflict(f"the variant {name} could not be made: {variant.reason}", field="variant")
    if variant.state != VariantState.DONE or variant.facts is None:
        raise Conflict(
            f"the variant {name} is not ready yet; wait for its job (`fleetfit jobs list` shows it) and try again",
            field="variant",
        )
    made = CompressFacts.model_validate(variant.facts)
    if made.trainable is None:
        raise Conflict(
            f"the variant {name} was made by an older version, which stored no trainable network; start the job again with "
            "another --seed to have it made anew, or make it on your machine with `fleetfit compress --local`",
            field="variant",
        )
    return models_pb2.GetVariantResponse(
        variant=variant.key,
        trainable=common_pb2.ArtifactRef(sha256=made.trainable.sha256, size_bytes=made.trainable.size_bytes),
        lineage_json=made.model_dump_json(indent=2),
        recipe=variant.recipe or Recipe.original().to_yaml(),
    )


def _named(session: Session, text: str, owner: str) -> VariantRow:
    if len(text) < _SHORTEST:
        raise InvalidInput(
            f"'{text}' is too short for a variant; give {_SHORTEST} characters or more of the name that its report shows",
            field="variant",
        )
    own = select(VariantRow).join(ModelRow, ModelRow.id == VariantRow.model_id).where(ModelRow.owner == owner)
    rows = session.scalars(own.where(VariantRow.key.startswith(text, autoescape=True)).order_by(VariantRow.key)).all()
    if len(rows) == 1:
        return rows[0]
    if rows:
        some = ", ".join(row.key[: len(text) + 4] for row in rows[:_SHOWN])
        raise InvalidInput(f"several variants begin with '{text}' ({some}); give more of the name", field="variant")
    known = [short(key) for key in session.scalars(own.with_only_columns(VariantRow.key).order_by(VariantRow.key))]
    near = difflib.get_close_matches(short(text), known, _SHOWN)
    hint = f"did you mean {' or '.join(near)}?" if near else "`fleetfit report JOB` shows a job's variants"
    raise NotFound(f"there is no variant '{text}'; {hint}", field="variant")
