"""What TensorRT says about the layers of an engine while it runs: by `IProfiler`, which a context reports each call to.

docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-853/api/c_api (IProfiler): called once per layer for each enqueueV3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fleetfit.runtimes.operators import (
    WARM_CALLS,
    NoProfile,
    OperatorRun,
    Profile,
    call_repeatedly,
    calls_of,
    profile_of,
    quicker_half,
)

_GPU: Final = "GPU"
_LAYERS: Final = (
    "TensorRT times layers, each of which may be several operators; copies to and from the GPU are in none of them"
)


def profile_context(
    trt: Any, context: Any, call: Callable[[], None], progress: Callable[[float], None]
) -> Profile | NoProfile:
    """The layers' times over calls that run in `context`."""
    heard: list[list[OperatorRun]] = []

    def one() -> None:
        heard.append([])
        call()

    def tell(layer_name: str, ms: float) -> None:
        heard[-1].append(OperatorRun(layer_name, "", _GPU, "", round(ms * 1e6)))

    profiler = _profiler(trt, tell)
    context.profiler = profiler
    for _ in range(WARM_CALLS):
        one()
    taken = call_repeatedly(one, progress)
    return profile_of(quicker_half(calls_of(heard, taken)), _LAYERS)


def _profiler(trt: Any, tell: Callable[[str, float], None]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            tell(layer_name, ms)

    return Profiler()
