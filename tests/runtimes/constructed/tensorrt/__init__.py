"""A constructed TensorRT: what the adapter calls, with NVIDIA's signatures, on the CPU.

It proves nothing of TensorRT or of a GPU. It is there so that the adapter's own work (engines, pieces of batches, buffers,
addresses, refusals) runs in tests. test_tensorrt_signatures.py holds it to what the real module's versions have. The variable
CONSTRUCTED_TENSORRT chooses a version; importing this puts a constructed libcudart beside it.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
import os
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from fleetfit.runtimes import cuda

from . import cudart

cuda.open_library = lambda path: cudart.Library()

__version__ = os.environ.get("CONSTRUCTED_TENSORRT", "10.3.0")
_MAJOR = int(__version__.split(".")[0])
_SEED_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}


def _enum(name, *members):
    return enum.IntEnum(name, {member: at for at, member in enumerate(members)})


DataType = _enum("DataType", *_SEED_NUMPY, "BOOL", "UINT8", "BF16")
LayerType = _enum("LayerType", "OTHER", "QUANTIZE")
TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
BuilderFlag = _enum("BuilderFlag", "TF32", *(["FP16", "INT8"] if _MAJOR < 11 else []))
NetworkDefinitionCreationFlag = _enum(
    "NetworkDefinitionCreationFlag",
    *(["EXPLICIT_BATCH"] if _MAJOR < 11 else []),
    *(["STRONGLY_TYPED"] if _MAJOR >= 10 else []),
)
_ONNX = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT32" if _MAJOR < 10 else "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.BFLOAT16: "BF16",
}


class ILogger:
    Severity = _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")

    def __init__(self) -> None: ...

    def log(self, severity, msg) -> None: ...


class Logger(ILogger):
    INTERNAL_ERROR = ILogger.Severity.INTERNAL_ERROR

    def __init__(self, min_severity=ILogger.Severity.WARNING) -> None: ...


if _MAJOR >= 10:

    class IProgressMonitor:
        def __init__(self) -> None: ...

        def phase_start(self, phase_name, parent_phase, num_steps): ...

        def step_complete(self, phase_name, step): ...

        def phase_finish(self, phase_name): ...


class IProfiler:
    def __init__(self) -> None: ...

    def report_layer_time(self, layer_name, ms): ...


class ITensor:
    def __init__(self, value):
        self.name = value.name
        kind = value.type.tensor_type
        self.dtype = DataType[_ONNX[kind.elem_type]]
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)


class ILayer:
    def __init__(self, node, values):
        self.type = LayerType.QUANTIZE if node.op_type == "QuantizeLinear" else LayerType.OTHER
        self._outputs = [values[name] for name in node.output if name in values]
        self.num_outputs = len(self._outputs)

    def get_output(self, index):
        return self._outputs[index]


class INetworkDefinition:
    num_layers = num_inputs = 0

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        return self.inputs[index]


class ParserError:
    def __init__(self, text):
        self._text = text

    def desc(self):
        return self._text


class OnnxParser:
    def __init__(self, network, logger) -> None:
        self._network, self._errors = network, []
        self.num_errors = 0

    def parse(self, model, path=None):
        try:
            return self._parse(model, path)
        except Exception as error:
            self._errors = [ParserError(str(error))]
            self.num_errors = 1
            return False

    def get_error(self, index):
        return self._errors[index]

    def _parse(self, model, path):
        read = onnx.load_from_string(model)
        if not read.graph.node:
            raise ValueError("Failed to parse ONNX model from memory")
        for weights in read.graph.initializer:
            if uses_external_data(weights):
                # As onnx-tensorrt does: whatever the location is, it stands behind the build's folder.
                location = {entry.key: entry.value for entry in weights.external_data}["location"]
                if "../" in location:
                    raise ValueError("Relative paths to parent (../) are not allowed in ONNX external weights!")
                file = f"{path.rpartition('/')[0]}/{location}" if path else location
                with open(file):
                    pass
        inferred = onnx.shape_inference.infer_shapes(read, data_prop=True).graph
        found = {v.name: ITensor(v) for v in [*inferred.input, *inferred.value_info, *inferred.output]}
        network = self._network
        network.model, network.layers = model, [ILayer(node, found) for node in read.graph.node]
        network.inputs = [found[value.name] for value in read.graph.input]
        network.outputs = [found[value.name] for value in read.graph.output]
        network.num_layers, network.num_inputs = len(network.layers), len(network.inputs)
        network.memory = sum(4 * math.prod(map(abs, tensor.shape)) for tensor in found.values())
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        self.shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class IBuilderConfig:
    if _MAJOR >= 10:
        progress_monitor = None

    def __init__(self) -> None:
        self.flags, self.profile, self.pools = {BuilderFlag.TF32}, None, {}

    def set_memory_pool_limit(self, pool, pool_size):
        self.pools[pool] = pool_size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0


class Builder:
    def __init__(self, logger) -> None:
        self._logger = logger

    def create_network(self, flags=0):
        self.flags = flags
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        if os.environ.get("CONSTRUCTED_MEMORY") == "none":
            raise MemoryError
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            monitor.phase_start("Timing Graph Nodes", "Building Engine", 4)
            for step in range(4):
                time.sleep(float(os.environ.get("CONSTRUCTED_STEP_S", "0")))
                monitor.step_complete("Timing Graph Nodes", step)
            monitor.phase_finish("Timing Graph Nodes")
            monitor.step_complete("Building Engine", 1)
            monitor.phase_finish("Building Engine")
        if any(-1 in tensor.shape for tensor in network.inputs) and config.profile is None:
            self._logger.log(ILogger.Severity.ERROR, "network has dynamic inputs, but no optimization profile")
            return None
        about = {
            "flags": sorted(flag.name for flag in config.flags),
            "network_flags": self.flags,
            "shapes": config.profile.shapes if config.profile else {},
            "memory": network.memory,
            "tensors": [
                [tensor.name, mode, tensor.dtype.name, tensor.shape]
                for mode, side in (("INPUT", network.inputs), ("OUTPUT", network.outputs))
                for tensor in side
            ],
        }
        return json.dumps(about).encode() + b"\n" + network.model


class Runtime:
    def __init__(self, logger) -> None: ...

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            return ICudaEngine(serialized_engine)
        except Exception:
            return None


class ICudaEngine:
    def __init__(self, plan):
        about, _, self.model = bytes(plan).partition(b"\n")
        self.about = json.loads(about)
        self._tensors = {name: (mode, dtype, tuple(shape)) for name, mode, dtype, shape in self.about["tensors"]}
        self.num_io_tensors = len(self._tensors)
        if _MAJOR < 11:
            self.device_memory_size = self.about["memory"]
        if _MAJOR >= 10:
            self.device_memory_size_v2 = self.about["memory"]

    def create_execution_context(self):
        return IExecutionContext(self)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return TensorIOMode[self._tensors[name][0]]

    def get_tensor_dtype(self, name):
        return DataType[self._tensors[name][1]]

    def get_tensor_shape(self, name):
        return self._tensors[name][2]

    def get_tensor_profile_shape(self, name, profile_index):
        return self.about["shapes"][name]


class IExecutionContext:
    profiler = None

    def __init__(self, engine):
        self._engine, self._addresses, self._shapes = engine, {}, {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(engine.model, options, providers=["CPUExecutionProvider"])
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]

    def set_input_shape(self, name, shape):
        low, _, high = self._engine.about["shapes"].get(name, [shape] * 3)
        self._shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name):
        if name in self._inputs:
            return self._shapes[name]
        # A size that depends on values is not known before; all others do not depend on them.
        if "NonZero" in str(onnx.load_from_string(self._engine.model).graph.node):
            return (-1, -1)
        zeros = {n: self._declared(n, np.zeros(self._shapes[n], self._numpy(n))) for n in self._inputs}
        return self._session.run([name], zeros)[0].shape

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle
        feeds = {}
        for name in self._inputs:
            shape, kind = self._shapes[name], np.dtype(self._numpy(name))
            memory = (ctypes.c_char * (math.prod(shape) * kind.itemsize)).from_address(self._addresses[name])
            feeds[name] = self._declared(name, np.frombuffer(memory, kind).reshape(shape))
        began = time.perf_counter()
        found = self._session.run(self._outputs, feeds)
        if self.profiler is not None:
            # Each layer as long as the others: how long they take is not what is tried here.
            names = [node.name or node.output[0] for node in onnx.load_from_string(self._engine.model).graph.node]
            each_ms = 1e3 * (time.perf_counter() - began) / len(names)
            for name in names:
                self.profiler.report_layer_time(name, each_ms)
        for name, values in zip(self._outputs, found, strict=True):
            content = values.astype(self._numpy(name)).tobytes()
            ctypes.memmove(self._addresses[name], content, len(content))
        return True

    def _declared(self, name, values):
        wide = next(i.type for i in self._session.get_inputs() if i.name == name) == "tensor(int64)"
        return values.astype(np.int64) if wide else values

    def _numpy(self, name):
        return _SEED_NUMPY[self._engine.get_tensor_dtype(name).name]
