"""A raw result of a profile as an agent sends it, with invented times."""

from __future__ import annotations

from fleetfit.proto.v1 import measurement_pb2

CALLS = 15
OPERATORS = [
    ("/features/stem/conv_with_a_long_name/Conv", "Conv", "float32", 40),
    ("/features/block.1/depthwise/Conv", "Conv", "float32", 25),
    ("/classifier/Gemm", "Gemm", "float32", 12),
    *((f"/features/block.{at}/Relu", "Relu", "float32", 2) for at in range(10)),
    ("ReorderOutput_token_3", "ReorderOutput", "float32", 1),
]
"""Name, type, number format, and hundredths of the whole; the rest of a hundred is one more operator's."""


def profile_result(ms: float = 1.0) -> measurement_pb2.MeasurementResult:
    """All operators together take `ms` in a call, and a call with the profiler on a fifth more."""
    result = measurement_pb2.MeasurementResult(
        status=measurement_pb2.MEASUREMENT_STATUS_MEASURED,
        method_version="2",
        agent_version="0.1.0",
        runtime="onnxruntime",
        runtime_version="1.23.2",
        quiet=True,
    )
    run = result.profile
    run.calls, run.elapsed_ns = CALLS, round(ms * 1.2e6 * CALLS)
    run.runtime_version = "1.23.2"
    run.notes.append("ONNX Runtime's profiler cuts each operator's time off to whole microseconds")
    given = [*OPERATORS, ("mean", "ReduceMean", "float32", 100 - sum(share for *_, share in OPERATORS))]
    for name, kind, number_format, share in given:
        total_ns = round(ms * 1e6 * CALLS * share / 100)
        run.operators.add(
            name=name, operator=kind, placed="CPU", number_format=number_format, runs=CALLS, total_ns=total_ns
        )
    return result


def none_result(
    because: str = "ncnn's package times no layers: it is built without NCNN_BENCHMARK",
) -> measurement_pb2.MeasurementResult:
    """A profile that the runtime does not offer."""
    result = profile_result()
    result.profile.Clear()
    result.profile.not_offered_because = because
    return result
