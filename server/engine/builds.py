"""The build to deploy on a device, and the manifest that travels with it."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleetfit.compress.tasks import Build, CompressFacts
from fleetfit.core.digests import short
from fleetfit.core.errors import Conflict, InvalidInput, NotFound
from fleetfit.core.ties import outputs_tolerance
from fleetfit.proto.v1 import common_pb2, reports_pb2
from fleetfit.server.engine.lookup import find_device
from fleetfit.server.engine.lowering import build_of
from fleetfit.server.engine.parts import beside_build
from fleetfit.server.storage.tables import BuildRow, CandidateRow, DeviceRow, JobRow, ModelRow, VariantRow

_SAMPLES: Final = "samples.npz"


def find_build(
    session: Session, job: JobRow, report: dict[str, Any], device: str, variant: str, runtime: str
) -> reports_pb2.GetBuildResponse:
    """A variant's build with its manifest; the selected one where `variant` is empty, in its runtime where `runtime` is.

    Raises NotFound, InvalidInput or Conflict.
    """
    row = _device_of(session, report, device)
    here = next((found for found in report["devices"] if found["device"] == row.name), None)
    if here is None:
        raise NotFound(f"the job {job.id[-6:]} has no device '{row.name}'; see its report", field="device")
    wanted = variant or here["selected"]
    if not wanted:
        raise Conflict(
            f"nothing was selected for {row.name}; `fleetfit report {job.id[-8:]}` says why, and --variant names another build"
        )
    candidates = session.scalars(
        select(CandidateRow)
        .where(
            CandidateRow.job_id == job.id,
            CandidateRow.device_id == row.id,
            CandidateRow.variant_key.startswith(wanted, autoescape=True),
        )
        .order_by(CandidateRow.position)
    ).all()
    if len({c.variant_key for c in candidates}) > 1:
        raise InvalidInput(
            f"several variants begin with '{wanted}'; give all of the name that the report shows", field="variant"
        )
    # A variant that was measured in several runtimes or under several conditions comes with what it was selected in.
    chosen: dict[str, Any] = next((c for c in here["candidates"] if c.get("selected")), {})
    condition = chosen.get("condition", {})
    wished = runtime or chosen.get("runtime")
    possible = [c for c in candidates if not runtime or c.runtime == runtime]
    candidate = min(
        possible,
        key=lambda c: (
            c.runtime != wished,
            (c.threads, c.batch) != (condition.get("threads"), condition.get("batch")),
            c.position,
        ),
        default=None,
    )
    build = None if candidate is None else build_of(session, candidate)
    if candidate is None or build is None:
        there = f" for {runtime}" if runtime else ""
        raise NotFound(
            f"{row.name} has no build{there} of a variant '{wanted}'; the report lists its variants", field="variant"
        )
    described: dict[str, Any] = next(
        (
            c
            for c in here["candidates"]
            if (c["variant"], c["runtime"]) == (short(candidate.variant_key), candidate.runtime)
            and (c["condition"]["threads"], c["condition"]["batch"]) == (candidate.threads, candidate.batch)
        ),
        {},
    )
    model = session.get_one(ModelRow, job.model_id)
    name = f"{model.name}-{candidate.recipe}.{build.format}"
    parts, parts_described = beside_build(model)
    manifest = _manifest(session, job, row, candidate, build, name, described)
    manifest["emulated"] = bool(here.get("emulated"))
    if parts:
        manifest["parts"] = parts_described
        manifest["files"] |= {
            one["file"]: {"sha256": one["sha256"], "size_bytes": one["size_bytes"]} for one in parts_described.values()
        }
    answer = reports_pb2.GetBuildResponse(
        build=common_pb2.NamedArtifact(
            name=name, artifact=common_pb2.ArtifactRef(sha256=build.sha256, size_bytes=build.size_bytes)
        ),
        manifest_json=json.dumps(manifest, indent=2),
        parts=parts,
    )
    samples = Build.model_validate(build.facts).samples
    if samples is not None:
        answer.samples.name = _SAMPLES
        answer.samples.artifact.sha256, answer.samples.artifact.size_bytes = samples.sha256, samples.size_bytes
    return answer


def _manifest(
    session: Session,
    job: JobRow,
    device: DeviceRow,
    candidate: CandidateRow,
    build: BuildRow,
    name: str,
    described: dict[str, Any],
) -> dict[str, Any]:
    facts = Build.model_validate(build.facts)
    variant = session.get_one(VariantRow, candidate.variant_key)
    made = CompressFacts.model_validate(variant.facts)
    model = session.get_one(ModelRow, job.model_id)
    files = {name: {"sha256": build.sha256, "size_bytes": build.size_bytes}}
    check: dict[str, Any] = {}
    if facts.samples is not None:
        files[_SAMPLES] = {"sha256": facts.samples.sha256, "size_bytes": facts.samples.size_bytes}
        check = {"samples": _SAMPLES, "tolerance": outputs_tolerance(facts.samples.rounding)}
    return {
        "schema": 1,
        "job": job.id,
        "device": device.name,
        "model": {"name": model.name, "version": model.version, "sha256": model.sha256},
        "variant": short(candidate.variant_key),
        "recipe": {"name": candidate.recipe, "yaml": variant.recipe},
        "runtime": build.runtime,
        "format": build.format,
        "files": files,
        "check": check,
        "inputs": [tensor.model_dump() for tensor in facts.inputs],
        "outputs": [tensor.model_dump() for tensor in facts.outputs],
        "options": {"threads": candidate.threads, "batch": candidate.batch},
        "environment": made.environment,
        "lineage": [step.model_dump() for step in made.lineage],
        "measured": described,
    }


def _device_of(session: Session, report: dict[str, Any], text: str) -> DeviceRow:
    if text:
        return find_device(session, text)
    names = [found["device"] for found in report["devices"]]
    if len(names) != 1:
        raise NotFound(f"the job has several devices; name one of {', '.join(names)} with --device", field="device")
    return find_device(session, names[0])
