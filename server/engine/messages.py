"""Models, datasets, trained networks and tensors as the protocol has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy.orm import Session

from fleetfit.compress.recipe import Recipe
from fleetfit.compress.tasks import PARTS, DataFacts, ModelFacts, ModelPart, PartName, RecoveredFacts, Tensor
from fleetfit.proto.v1 import common_pb2, models_pb2
from fleetfit.server.storage.tables import DatasetRow, ModelRow, RecoveredRow, VariantRow

_STATES: Final = {
    "checking": models_pb2.INTAKE_STATE_CHECKING,
    "accepted": models_pb2.INTAKE_STATE_ACCEPTED,
    "refused": models_pb2.INTAKE_STATE_REFUSED,
}


def tensor_messages(tensors: Sequence[Tensor]) -> list[common_pb2.TensorSpec]:
    """Tensors as the protocol has them."""
    return [common_pb2.TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in tensors]


def artifact_message(kept: Mapping[str, Any]) -> common_pb2.ArtifactRef:
    """Content that a row names by `sha256` and `size_bytes`."""
    return common_pb2.ArtifactRef(sha256=kept["sha256"], size_bytes=kept["size_bytes"])


def parts_of(row: ModelRow) -> list[tuple[PartName, Mapping[str, Any], ModelPart]]:
    """The parts of an accepted model, `pre` first: name, content as `artifact_message` reads it, and what is known of it."""
    facts = ModelFacts.model_validate(row.facts) if row.facts is not None else None
    return [(name, row.parts[name], facts.parts[name]) for name in PARTS if facts is not None and name in facts.parts]


def model_message(row: ModelRow) -> models_pb2.Model:
    """A model as the protocol has it."""
    message = models_pb2.Model(
        model_id=row.id,
        name=row.name,
        version=row.version,
        format=row.format,
        artifact=common_pb2.ArtifactRef(sha256=row.sha256, size_bytes=row.size_bytes),
        state=_STATES[row.state],
        refusal=row.refusal,
        created_unix_ms=row.created_ms,
    )
    if row.facts is not None:
        facts = ModelFacts.model_validate(row.facts)
        message.inputs.extend(tensor_messages(facts.inputs))
        message.outputs.extend(tensor_messages(facts.outputs))
        message.parameters, message.macs = facts.parameters, facts.macs
        message.recognised_share, message.trainable = facts.recognised_share, facts.trainable
        message.notes.extend(facts.notes)
        for name, kept, part in parts_of(row):
            target = message.pre if name == "pre" else message.post
            target.artifact.CopyFrom(artifact_message(kept))
            target.inputs.extend(tensor_messages(part.inputs))
            target.outputs.extend(tensor_messages(part.outputs))
    return message


def recovered_message(session: Session, row: RecoveredRow) -> models_pb2.Recovered:
    """A variant's trained network as the protocol has it."""
    variant = session.get_one(VariantRow, row.variant_key)
    model = session.get_one(ModelRow, variant.model_id)
    message = models_pb2.Recovered(
        recovered=row.id,
        variant=row.variant_key,
        model=f"{model.name}:{model.version}",
        recipe=(Recipe.from_yaml(variant.recipe) if variant.recipe else Recipe.original()).name,
        artifact=common_pb2.ArtifactRef(sha256=row.sha256, size_bytes=row.size_bytes),
        state=_STATES[row.state],
        refusal=row.refusal,
        created_unix_ms=row.created_ms,
    )
    if row.facts is not None:
        facts = RecoveredFacts.model_validate(row.facts)
        message.parameters, message.changed, message.tensors = facts.parameters, facts.changed, facts.tensors
        message.notes.extend(facts.notes)
    return message


def dataset_message(row: DatasetRow) -> models_pb2.Dataset:
    """A dataset as the protocol has it."""
    message = models_pb2.Dataset(
        dataset_id=row.id,
        name=row.name,
        version=row.version,
        state=_STATES[row.state],
        refusal=row.refusal,
        metric=row.metric,
        created_unix_ms=row.created_ms,
    )
    for name, split in row.splits.items():
        artifact = common_pb2.ArtifactRef(sha256=split["sha256"], size_bytes=split["size_bytes"])
        message.splits.append(models_pb2.Split(name=name, count=split["count"], artifact=artifact))
    if row.facts is not None:
        facts = DataFacts.model_validate(row.facts)
        message.inputs.extend(tensor_messages(facts.inputs))
        if facts.targets is not None:
            message.targets.CopyFrom(tensor_messages([facts.targets])[0])
        message.task, message.classes, message.metric = facts.task, facts.classes, facts.metric
        message.notes.extend(facts.notes)
    return message
