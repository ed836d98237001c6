"""A raw result of scaling curves as an agent sends it, with invented samples."""

from __future__ import annotations

from fleetfit.proto.v1 import measurement_pb2

from ...proto.test_scaling import add_point


def scaling_result(ms: float = 1.0, *, rounds: int = 3) -> measurement_pb2.MeasurementResult:
    """Four cores; a call takes `ms` alone. Two processes at once get in each other's way, batches of 4 do not fit."""
    result = measurement_pb2.MeasurementResult(
        status=measurement_pb2.MEASUREMENT_STATUS_MEASURED,
        method_version="2",
        agent_version="0.1.0",
        runtime="onnxruntime",
        runtime_version="1.23.2",
        quiet=True,
    )
    run = result.scaling
    run.cores = 4
    one = add_point(run, ms, rounds=rounds)
    two = add_point(run, ms * 0.6, threads=2, rounds=rounds)
    four = add_point(run, ms * 0.5, threads=4, rounds=rounds)
    run.threads.points.extend([one, two, four])
    run.threads.ended = "that is all 4 usable cores"
    pair = add_point(run, ms * 1.2, batch=2, rounds=rounds)
    run.points.add(
        threads=1,
        batch=4,
        instances=1,
        status=measurement_pb2.MEASUREMENT_STATUS_OUT_OF_MEMORY,
        message="the build needs more memory than the device has free; try a smaller build or batch",
    )
    run.batch.points.extend([one, pair, len(run.points) - 1])
    run.batch.ended = "the next needs more memory than there is"
    shared = add_point(run, ms * 0.8, threads=2, instances=2, rounds=rounds, memory=41_000_000)
    each = add_point(run, ms * 1.4, threads=1, instances=4, rounds=rounds, memory=36_000_000)
    run.instances.points.extend([four, shared, each])
    run.instances.ended = run.threads.ended
    return result
