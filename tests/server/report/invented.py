"""A report of two devices, made of invented figures that look like real ones. Nothing here was measured."""

from __future__ import annotations

from fleetfit.server.report.facts import CandidateFacts, DeviceFacts, JobFacts, LimitFacts
from fleetfit.server.report.summary import Drops, Figure, Latency, MeasurementSummary, MetricSummary

ORIGINAL_BYTES = 1_724_000
# recipe, role, ratio (value, low, high), size, parameters, accuracy, drop (value, low, high), memory
INVENTED = [
    ("original", "original", (1.003, 0.994, 1.012), 1_724_000, 429_706, 91.62, (0.21, -0.02, 0.44), 9_650_000),
    ("original-retrained", "control", (0.998, 0.985, 1.011), 1_724_000, 429_706, 91.83, (0.0, 0.0, 0.0), 9_650_000),
    ("int8-dynamic", "recipe", (0.81, 0.79, 0.83), 438_000, 429_706, 91.60, (0.23, 0.0, 0.46), 8_210_000),
    ("int8-static", "recipe", (1.42, 1.38, 1.46), 441_200, 429_706, 91.35, (0.48, 0.19, 0.77), 7_980_000),
    ("low-rank", "recipe", (1.01, 0.98, 1.04), 963_000, 239_118, 91.70, (0.13, -0.11, 0.37), 9_020_000),
    ("pruned", "recipe", (2.61, 2.52, 2.70), 442_000, 109_236, 91.42, (0.41, 0.12, 0.70), 7_600_000),
    ("pruned-int8", "recipe", (3.92, 3.70, 4.15), 121_900, 109_236, 91.28, (0.55, 0.24, 0.86), 7_120_000),
    ("pruned-low-rank", "recipe", (2.55, 2.47, 2.63), 301_000, 73_900, 91.19, (0.64, 0.31, 0.97), 7_450_000),
    ("small-and-quick", "recipe", (3.85, 3.66, 4.05), 88_400, 73_900, 90.61, (1.22, 0.84, 1.60), 6_990_000),
    ("too-small", "recipe", (4.6, 4.4, 4.8), 30_400, 9_900, 54.2, (37.63, 36.6, 38.7), 6_400_000),
]


def _summary(at: int, threads: int, split: str, p50: float) -> MeasurementSummary:
    _, _, ratio, _, _, accuracy, _, memory = INVENTED[at]
    value = accuracy - (0.2 if split == "test" else 0.0)
    metric = MetricSummary(
        name="accuracy", split=split, n=6000, figure=Figure(value=value, low=value - 0.7, high=value + 0.7)
    )
    if split == "test":
        return MeasurementSummary(status="measured", metric=metric)
    mine = p50 / ratio[0]
    return MeasurementSummary(
        status="measured",
        latency=Latency(
            p50_ms=Figure(value=mine, low=mine * 0.975, high=mine * 1.03),
            p95_ms=mine * 1.18,
            p99_ms=mine * 1.61 if threads == 1 else None,
            samples=4310 if threads == 1 else 410,
            processes=6,
            load_ms=12.3,
            first_ms=mine * 2.4,
            steady=True,
        ),
        ratio=Figure(value=ratio[0], low=ratio[1], high=ratio[2]),
        peak_memory_bytes=memory,
        metric=metric,
        trust="noisy" if at == 4 else "clean",
        runtime="onnxruntime",
        runtime_version="1.23.2",
        condition={"threads": str(threads), "batch": "1", "governor": "performance", "kernel": "6.1.0"},
        notes=[] if threads == 1 else ["p99 is not given: 410 samples cannot carry it"],
    )


def device_facts(name: str, threads: int, p50: float, *, emulated: bool = False) -> DeviceFacts:
    """One device with all candidates, one of which failed."""
    candidates = []
    for at, (recipe, role, _, size, parameters, _, _, _) in enumerate(INVENTED):
        kept = recipe in ("original", "original-retrained", "pruned-int8")
        lineage = [
            {"pass_name": "original", "parameters_of_pass": {}, "parameters": 429_706, "macs": 2_870_000,
             "weight_bytes": ORIGINAL_BYTES, "seconds": 0.0},
        ]  # fmt: skip
        if role == "recipe":
            lineage.append(
                {"pass_name": "activation_pruning", "parameters_of_pass": {"ratio": 0.5, "round_to": 8},
                 "parameters": parameters, "macs": 890_000, "weight_bytes": size, "seconds": 2.31}
            )  # fmt: skip
        candidates.append(
            CandidateFacts(
                id=f"{name}-{recipe}",
                variant=f"{at:02x}c0ffee{at:02x}",
                recipe=recipe,
                role=role,
                runtime="onnxruntime",
                threads=threads,
                batch=1,
                state="measured",
                size_bytes=size,
                parameters=parameters,
                macs=2_870_000 if role != "recipe" else 890_000,
                integer_operators=7 if "int8" in recipe else 0,
                total_operators=12,
                lineage=tuple(lineage),
                validation=_summary(at, threads, "validation", p50),
                test=_summary(at, threads, "test", p50) if kept else None,
            )
        )
    candidates.append(
        CandidateFacts(
            id=f"{name}-broken", variant="bad0000bad", recipe="my-own-recipe-with-a-rather-long-name", role="recipe",
            runtime="onnxruntime", threads=threads, batch=1, state="failed",
            reason="the runtime cannot load the build: no kernel for ConvInteger on this processor",
        )
    )  # fmt: skip

    def drops(split: str) -> Drops:
        by_candidate = {
            f"{name}-{row[0]}": Figure(value=row[6][0], low=row[6][1], high=row[6][2])
            for row in INVENTED
            if split == "validation" or row[0] in ("original", "original-retrained", "pruned-int8")
        }
        return Drops(against=f"{name}-original-retrained", by_candidate=by_candidate)

    return DeviceFacts(
        device_id=f"id-{name}",
        name=name,
        profile="x86-avx2" if not emulated else "raspberry-pi-4",
        snapshot_id="5e1f" * 16,
        emulated=emulated,
        candidates=tuple(candidates),
        validation_drops=drops("validation"),
        test_drops=drops("test"),
    )


def job_facts() -> JobFacts:
    """The job."""
    return JobFacts(
        job_id="01m876p3958wh6erfcnpd8scrm",
        kind="compress",
        model="fashion:1 (test data, not measured)",
        metric="accuracy",
        objective="latency",
        limits=LimitFacts(max_drop_points=1.0),
        accept_emulated=False,
        created_ms=1_795_000_000_000,
        devices=(device_facts("one-thread", 1, 0.412), device_facts("pi-stand-in", 2, 3.9, emulated=True)),
    )
