"""The trainable network of a variant, found by the name that reports show."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import CompressFacts, Trainable
from fleetfit.core.digests import short
from fleetfit.core.errors import Conflict
from fleetfit.proto.v1 import common_pb2, models_pb2
from fleetfit.server.engine.lookup import find_by_key
from fleetfit.server.engine.states import VariantState
from fleetfit.server.storage.tables import ModelRow, VariantRow


def find_variant(session: Session, text: str, owner: str) -> models_pb2.GetVariantResponse:
    """What a person's variant was made into. Raises NotFound, InvalidInput, or Conflict where there is nothing to train."""
    variant, made, network = find_trainable(session, text, owner)
    return models_pb2.GetVariantResponse(
        variant=variant.key,
        trainable=common_pb2.ArtifactRef(sha256=network.sha256, size_bytes=network.size_bytes),
        lineage_json=made.model_dump_json(indent=2),
        recipe=variant.recipe or Recipe.original().to_yaml(),
    )


def find_trainable(session: Session, text: str, owner: str) -> tuple[VariantRow, CompressFacts, Trainable]:
    """A person's variant, what it was made into, and its network. Raises as `find_variant` does."""
    asked = aliased(ModelRow)
    # A variant is made once for all who pushed the same model, so its row names the model of one of them.
    digests = select(asked.sha256).where(asked.owner == owner)
    own = select(VariantRow).join(ModelRow, ModelRow.id == VariantRow.model_id).where(ModelRow.sha256.in_(digests))
    variant = find_by_key(session, own, VariantRow.key, text, "variant", "`fleetfit report JOB`")
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
    return variant, made, made.trainable


def network_of(variant: VariantRow) -> str:
    """The digest of the network of a variant that `find_trainable` has found."""
    made = CompressFacts.model_validate(variant.facts)
    assert made.trainable is not None  # noqa: S101 - nothing takes it away again
    return made.trainable.sha256
