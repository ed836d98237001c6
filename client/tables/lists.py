"""Tables of devices, models, datasets, jobs, and of a job's plan. All fit 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

from rich.table import Table

from fleetfit.client.plain import enum_word
from fleetfit.client.pushing import PART_NAMES
from fleetfit.client.tables.plain_table import table
from fleetfit.client.tables.profiles import profile_rows
from fleetfit.client.tables.words import ago, condition, count, duration, job_id, shape, significant, size
from fleetfit.core.digests import short
from fleetfit.proto.v1 import common_pb2, devices_pb2, jobs_pb2, models_pb2


def devices_table(devices: Sequence[devices_pb2.Device]) -> Table:
    """The fleet."""
    rows = []
    for device in devices:
        state = device_state(device)
        profile = (device.profile or "-") + (" (emulated)" if device.emulated else "")
        rows.append((device.name, state, profile, ", ".join(device.labels) or "-", ago(device.last_seen_unix_ms)))
    return table((("DEVICE", ""), ("STATE", ""), ("PROFILE", ""), ("LABELS", ""), ("SEEN", "")), rows)


def device_state(device: devices_pb2.Device) -> str:
    """A device's state in a word or two."""
    state = enum_word(devices_pb2.DeviceState.DESCRIPTOR, device.state)
    closed = bool(device.hours) and not device.within_hours
    if device.set_aside:
        state += ", set aside"
    return f"{state}, paused" if device.paused else f"{state}, off hours" if closed else state


def device_facts(device: devices_pb2.Device) -> Table:
    """Everything known about one device."""
    snapshot = device.snapshot
    processor = snapshot.processor
    clock = f", up to {processor.max_frequency_hz / 1e9:.2f} GHz" if processor.HasField("max_frequency_hz") else ""
    cores = f"{processor.model or snapshot.machine}, {processor.usable_cores} cores{clock}"
    facts = [
        ("id", device.device_id),
        ("state", device_state(device)),
        *([("set aside", device.set_aside)] if device.set_aside else []),
        ("labels", ", ".join(device.labels) or "-"),
        ("hours", ", ".join(device.hours) or "any time"),
        (
            "profile",
            f"{device.profile or '-'}: {device.profile_reason}" if device.profile_reason else device.profile or "-",
        ),
        *profile_rows(json.loads(device.profile_json) if device.profile_json else {}),
        ("emulated", _emulated(device)),
        ("board", snapshot.device_tree_model or "-"),
        ("processor", cores if device.snapshot_id else "not known yet; the agent has never connected"),
        ("memory", size(snapshot.memory_bytes) if snapshot.HasField("memory_bytes") else "-"),
        ("system", ", ".join(part for part in (snapshot.os.name, snapshot.os.kernel, snapshot.os.l4t) if part) or "-"),
        ("threads", str(snapshot.threads) if snapshot.threads else "-"),
        ("power mode", snapshot.power_mode or "-"),
        ("meters", ", ".join(snapshot.meters) or "-"),
        ("agent", device.agent_version or "-"),
        ("seen", ago(device.last_seen_unix_ms)),
        ("working on", device.current_task_id or "-"),
        ("health", health_words(device)),
    ]
    for runtime in snapshot.runtimes:
        facts.append((runtime.name, runtime.version if runtime.available else f"not available: {runtime.reason}"))
    facts += [(ago(event.at_unix_ms), event.text) for event in device.events]
    return table(((device.name, ""), ("", "")), facts)


def _emulated(device: devices_pb2.Device) -> str:
    because = device.snapshot.emulated_because
    return f"yes{f' ({because})' if because else ''}: its timings mean nothing" if device.emulated else "no"


def health_words(device: devices_pb2.Device) -> str:
    """What the last health check said of a device, or why there is none."""
    found = device.last_check
    if not found.check_id:
        return f"not checked: {device.no_check_because}" if device.no_check_because else "not checked yet"
    parts = [f"{_VERDICTS.get(found.verdict, found.verdict)} {ago(found.at_unix_ms)}"]
    if found.why:
        parts[0] += f": {found.why}"
    if found.HasField("p50_ms"):
        known = found.HasField("low_ms") and found.HasField("high_ms")
        bounds = f" ({significant(found.low_ms)} to {significant(found.high_ms)})" if known else ""
        parts.append(f"the golden model took {significant(found.p50_ms)} ms{bounds}")
    if found.HasField("expected_low_ms"):
        expected = f"{significant(found.expected_low_ms)} to {significant(found.expected_high_ms)}"
        parts.append(f"{expected} were expected after {found.history} checks under this condition")
    if device.no_check_because:
        parts.append(f"not checked by itself: {device.no_check_because}")
    return "; ".join(parts)


_VERDICTS: Final = {"new": "well so far,", "unclear": "unclear,"}


def models_table(models: Sequence[models_pb2.Model]) -> Table:
    """Versions of models."""
    rows = [
        (
            f"{model.name}:{model.version}",
            enum_word(models_pb2.IntakeState.DESCRIPTOR, model.state),
            model.format,
            count(model.parameters) if model.parameters else "-",
            size(model.artifact.size_bytes),
            ago(model.created_unix_ms),
        )
        for model in models
    ]
    return table(
        (("MODEL", ""), ("STATE", ""), ("FORMAT", ""), ("PARAMETERS", "right"), ("SIZE", "right"), ("PUSHED", "")), rows
    )


def model_facts(model: models_pb2.Model) -> Table:
    """Everything known about one model."""
    facts = [
        ("id", model.model_id),
        ("state", enum_word(models_pb2.IntakeState.DESCRIPTOR, model.state)),
        ("format", model.format + ("" if model.trainable else " (to measure and quantize only)")),
        ("size", size(model.artifact.size_bytes)),
        ("parameters", count(model.parameters) if model.parameters else "-"),
        ("multiply-adds", f"{count(model.macs)} for one sample" if model.macs else "-"),
        *tensor_rows("input", model.inputs),
        *tensor_rows("output", model.outputs),
        ("sha256", model.artifact.sha256),
        *(row for name in PART_NAMES if model.HasField(name) for row in _part_rows(name, getattr(model, name))),
        *(("note", note) for note in model.notes),
    ]
    if model.trainable:
        facts.insert(
            6, ("recognised", f"{model.recognised_share:.0%} of the parameters lie in layers that passes know")
        )
    if model.refusal:
        facts.append(("refused", model.refusal))
    return table(((f"{model.name}:{model.version}", ""), ("", "")), facts)


def _part_rows(name: str, part: models_pb2.ModelPart) -> Iterable[tuple[str, str]]:
    """A part that is never compressed."""
    yield f"{name} part", f"{size(part.artifact.size_bytes)}, sha256 {part.artifact.sha256}"
    yield from tensor_rows(f"{name} takes", part.inputs)
    yield from tensor_rows(f"{name} gives", part.outputs)


def recovered_facts(found: models_pb2.Recovered) -> Table:
    """Everything known about a variant's network that its user trained."""
    facts = [
        ("of the variant", short(found.variant)),
        ("of the model", found.model),
        ("recipe", found.recipe),
        ("size", size(found.artifact.size_bytes)),
        ("parameters", count(found.parameters)),
        ("changed", f"{found.changed} of its {found.tensors} weights and buffers"),
        ("sha256", found.artifact.sha256),
        *(("note", note) for note in found.notes),
    ]
    return table(((short(found.recovered), ""), ("", "")), facts)


def tensor_rows(word: str, tensors: Iterable[common_pb2.TensorSpec]) -> list[tuple[str, str]]:
    """One row for each input or output."""
    return [(word, f"{tensor.name}: {tensor.dtype} {shape(tensor.shape)}") for tensor in tensors]


def datasets_table(datasets: Sequence[models_pb2.Dataset]) -> Table:
    """Versions of datasets."""
    rows = [
        (
            f"{data.name}:{data.version}",
            enum_word(models_pb2.IntakeState.DESCRIPTOR, data.state),
            data.task or "-",
            data.metric or "-",
            count(sum(split.count for split in data.splits)),
            ago(data.created_unix_ms),
        )
        for data in datasets
    ]
    return table(
        (("DATASET", ""), ("STATE", ""), ("TASK", ""), ("METRIC", ""), ("SAMPLES", "right"), ("PUSHED", "")), rows
    )


def dataset_facts(data: models_pb2.Dataset) -> Table:
    """Everything known about one dataset."""
    facts = [
        ("id", data.dataset_id),
        ("state", enum_word(models_pb2.IntakeState.DESCRIPTOR, data.state)),
        ("task", data.task + (f", {data.classes} classes" if data.classes else "") if data.task else "- (no targets)"),
        ("judged by", data.metric or "-"),
        *tensor_rows("input", data.inputs),
        *(tensor_rows("targets", [data.targets]) if data.HasField("targets") else []),
        *((f"{split.name} split", f"{count(split.count)} samples") for split in data.splits),
        *(("note", note) for note in data.notes),
    ]
    if data.refusal:
        facts.append(("refused", data.refusal))
    return table(((f"{data.name}:{data.version}", ""), ("", "")), facts)


def jobs_table(jobs: Sequence[jobs_pb2.Job]) -> Table:
    """Jobs, newest first."""
    rows = [
        (
            job_id(job.job_id),
            enum_word(jobs_pb2.JobState.DESCRIPTOR, job.state),
            enum_word(jobs_pb2.JobKind.DESCRIPTOR, job.spec.kind),
            job.spec.model,
            ", ".join(job.spec.devices),
            f"{job.progress.fraction:.0%}",
            ago(job.created_unix_ms),
        )
        for job in jobs
    ]
    headings = ("JOB", "STATE", "KIND", "MODEL", "ON", "PROGRESS", "BEGUN")
    return table([(heading, "right" if heading == "PROGRESS" else "") for heading in headings], rows)


def job_candidates(job: jobs_pb2.Job) -> Table:
    """How far each candidate of a job is."""
    rows = [
        (one.device, one.recipe + condition(one, job.candidates), one.runtime, one.state, one.detail)
        for one in job.candidates
    ]
    return table((("DEVICE", ""), ("RECIPE", ""), ("RUNTIME", ""), ("STATE", ""), ("", "")), rows)


def plan_table(plan: jobs_pb2.Plan) -> Table:
    """What a job would do."""
    rows = [
        (
            one.device,
            one.recipe + condition(one, plan.candidates),
            one.runtime,
            size(one.expected_size_bytes or None),
            size(one.download_bytes),
            "made" if one.cached else duration(one.expected_compress_ms / 1000),
            duration(one.expected_measure_ms / 1000),
            f"skipped: {one.skip_reason}" if one.skip_reason else "",
        )
        for one in plan.candidates
    ]
    columns = [("DEVICE", ""), ("RECIPE", ""), ("RUNTIME", ""), ("SIZE", "right"), ("FETCH", "right")]
    columns += [("COMPRESS", "right"), ("MEASURE", "right")]
    if any(row[-1] for row in rows):
        columns.append(("", ""))
    return table(columns, [row[: len(columns)] for row in rows])
