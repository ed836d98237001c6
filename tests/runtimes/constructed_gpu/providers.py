"""The constructed providers: see onnxruntime/__init__.py beside this."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

from fleetfit.runtimes import cuda

GPU = {"TensorrtExecutionProvider", "CUDAExecutionProvider"}
# What the documentation of either provider lists, of what the adapter sets.
OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32", "gpu_mem_limit"},
    "TensorrtExecutionProvider": {
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
        "trt_max_workspace_size",
        "trt_timing_cache_enable",
        "trt_int8_enable",
        "trt_fp16_enable",
    },
}
opened = []
"""The providers with their options that sessions were opened with in this process."""


def _listed(variable):
    return set(os.environ.get(variable, "").split(","))


def pretend(onnxruntime, set_attribute):
    """Put the providers into the module, by `set_attribute(module, name, value)`."""
    real_session, real_providers = onnxruntime.InferenceSession, onnxruntime.get_available_providers

    class Session(real_session):
        def __init__(self, build, options, providers, **others):
            assert others == {"enable_fallback": 0}
            wanted = [one if isinstance(one, tuple) else (one, {}) for one in providers]
            opened.append(wanted)
            for name, chosen in wanted:
                assert set(chosen) <= OPTIONS.get(name, set()), chosen
                assert all(isinstance(value, str) for value in chosen.values()), chosen
            self._gpu = [name for name, _ in wanted if name in GPU and name not in _listed("CONSTRUCTED_ABSENT")]
            super().__init__(build, options, providers=["CPUExecutionProvider"], **others)
            for _, chosen in wanted:
                if chosen.get("trt_engine_cache_enable") == "True":
                    self._cache(Path(chosen["trt_engine_cache_path"]))

        def _cache(self, folder):
            engine = folder / "TensorrtExecutionProvider_TRTKernel_graph.engine"
            if engine.exists():
                # An engine is for its shapes alone.
                assert json.loads(engine.read_text()) == [port.shape for port in self.get_inputs()]
            else:
                engine.write_text(json.dumps([port.shape for port in self.get_inputs()]))

        def get_providers(self):
            return [*self._gpu, *super().get_providers()]

        def end_profiling(self):
            path = super().end_profiling()
            events = json.loads(Path(path).read_text())
            for event in events:
                about = event["args"]
                if "provider" in about and about["op_name"] not in _listed("CONSTRUCTED_ON_CPU") and self._gpu:
                    about["provider"] = self._gpu[0]
            Path(path).write_text(json.dumps(events))
            return path

    set_attribute(onnxruntime, "InferenceSession", Session)
    gpu = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    set_attribute(onnxruntime, "get_available_providers", lambda: [*gpu, *real_providers()])
    library = Path(__file__).parents[1] / "constructed" / "tensorrt" / "cudart.py"
    names = runpy.run_path(str(library))
    set_attribute(cuda, "open_library", lambda path: names["Library"]())
