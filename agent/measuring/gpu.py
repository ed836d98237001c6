"""How much of the GPU's memory a build takes: what less of it is free once the build has run.

On a Jetson CUDA counts the memory that it shares with the processor, and nothing tells without root whose a page is
(/sys/kernel/debug/nvmap), so what others take or give back meanwhile is in the figure.
"""

from __future__ import annotations

from typing import Final

from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.base import Runtime

_NO_GPU: Final = "the runtime uses no GPU"
_SILENT: Final = "CUDA does not tell how much of it is free"


class GpuMemory:
    """To be made before a build is loaded. The first look makes CUDA's own context, which is so no part of the build's."""

    def __init__(self, adapter: Runtime) -> None:
        self._adapter = adapter
        self._before = adapter.gpu_free_bytes()

    def tell(self, run: measurement_pb2.SoloRun) -> None:
        """Write down what less is free now, or why that is not known."""
        after = self._adapter.gpu_free_bytes() if self._before is not None else None
        if self._before is None or after is None:
            run.no_gpu_memory_because = _SILENT if self._adapter.uses_gpu else _NO_GPU
        else:
            run.gpu_memory_bytes = max(0, self._before - after)
