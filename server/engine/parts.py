"""A model's parts that are never compressed, on their way to devices, and beside a build that is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetfit.core.errors import InvalidInput
from fleetfit.proto.v1 import common_pb2, jobs_pb2, measurement_pb2
from fleetfit.proto.versions import CHAINS
from fleetfit.server.engine.messages import artifact_message, parts_of, tensor_messages
from fleetfit.server.engine.planning import PlannedDevice, PlannedModel
from fleetfit.server.storage.tables import ModelRow


def add_parts(measure: measurement_pb2.MeasureTask, model: ModelRow) -> list[common_pb2.NamedArtifact]:
    """Let a task measure the chain too, if its model has parts; what the device has to fetch for it."""
    named = _named(model)
    for (name, _, facts), artifact in zip(parts_of(model), named, strict=True):
        ref = measure.pre if name == "pre" else measure.post
        ref.artifact_name, ref.runtime, ref.format = artifact.name, "onnxruntime", "onnx"
        ref.inputs.extend(tensor_messages(facts.inputs))
        ref.outputs.extend(tensor_messages(facts.outputs))
        ref.build_id = artifact.artifact.sha256
    return named


def beside_build(model: ModelRow) -> tuple[list[common_pb2.NamedArtifact], dict[str, Any]]:
    """The files that belong beside a build of the model, and what its manifest says of them, by `pre` and `post`."""
    named = _named(model)
    described: dict[str, Any] = {
        str(name): {
            "file": artifact.name,
            "sha256": artifact.artifact.sha256,
            "size_bytes": artifact.artifact.size_bytes,
            "inputs": [tensor.model_dump() for tensor in facts.inputs],
            "outputs": [tensor.model_dump() for tensor in facts.outputs],
        }
        for (name, _, facts), artifact in zip(parts_of(model), named, strict=True)
    }
    return named, described


def check_end_to_end(spec: jobs_pb2.JobSpec, model: PlannedModel) -> None:
    """Raise InvalidInput for a limit on the whole chain of a model that has none."""
    if spec.limits.HasField("p95_end_to_end_ms") and not model.facts.parts:
        raise InvalidInput(
            f"{model.name} has no parts before or behind it, so there is nothing to limit end to end; give --p95-ms, or push it "
            "with --pre or --post",
            field="p95_end_to_end_ms",
        )


def parts_notes(spec: jobs_pb2.JobSpec, model: PlannedModel, devices: Sequence[PlannedDevice]) -> list[str]:
    """What a plan says of a model with parts: what its limits are on, and which devices cannot time the chain."""
    if not model.facts.parts:
        return []
    notes = []
    if spec.limits.HasField("p95_ms"):
        notes.append(
            f"the limit of {spec.limits.p95_ms:g} ms on p95 is on the model alone; --p95-end-to-end-ms limits the chain with its "
            "pre and post parts"
        )
    old = [device.name for device in devices if CHAINS not in device.capabilities]
    if old:
        notes.append(f"{', '.join(old)} cannot time pre and post parts: the agent there is older; update it")
    return notes


def _named(model: ModelRow) -> list[common_pb2.NamedArtifact]:
    return [
        common_pb2.NamedArtifact(name=f"{name}.onnx", artifact=artifact_message(kept))
        for name, kept, _ in parts_of(model)
    ]
