"""A constructed torch_tensorrt: the one call that the adapter makes, for a handful of operators, on the constructed TensorRT.

It proves nothing of torch_tensorrt or of a GPU. It is there so that the adapter's own work (networks made anew, shapes, engines,
pieces of batches, names, refusals) runs in tests and in their children. test_torch_tensorrt.py holds its parameters to what the
wheels have. CONSTRUCTED_TORCH_TENSORRT chooses a version. Importing it puts networks on the processor.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import tensorrt as trt
import torch
from onnx import TensorProto, helper, numpy_helper

from fleetfit.runtimes import torch_tensorrt_library

torch_tensorrt_library.DEVICE = "cpu"

__version__ = os.environ["CONSTRUCTED_TORCH_TENSORRT"]
_MINOR = int(__version__.split(".")[1])
_LOGGER = logging.getLogger("torch_tensorrt.dynamo._compiler")
_ONNX = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.int64: TensorProto.INT64}
_aten = torch.ops.aten


class UnsupportedOperatorException(RuntimeError):
    pass


def _older(
    exported_program,
    inputs=None,
    *,
    disable_tf32=False,
    workspace_size=0,
    timing_cache_path="/",
    use_explicit_typing=False,
):
    assert use_explicit_typing, "else TensorRT may compute in other formats"
    try:
        return _converted(exported_program, inputs, disable_tf32, workspace_size, timing_cache_path)
    except UnsupportedOperatorException:
        # As 2.8 does: what went wrong is in the log alone.
        _LOGGER.error("Conversion of module not currently fully supported or convertible!", exc_info=True)
    raise UnboundLocalError("cannot access local variable 'interpreter_result'")


def _newer(exported_program, inputs=None, *, disable_tf32=False, workspace_size=0, timing_cache_path="/"):
    return _converted(exported_program, inputs, disable_tf32, workspace_size, timing_cache_path)


def _converted(program, inputs, disable_tf32, workspace_size, timing_cache_path):
    assert disable_tf32 and workspace_size > 0
    cache = Path(timing_cache_path)
    assert not cache.exists(), "a second engine would be the first one again"
    cache.write_bytes(b"timings")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(_as_onnx(program, inputs).SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_size)
    return builder.build_serialized_network(network, config)


def _as_onnx(program, inputs):
    signature = program.graph_signature
    weights, nodes, ports, kinds = [], [], [], {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            assert all(isinstance(size, int) for size in value.shape), "an engine has fixed sizes"
            kinds[node.name] = _ONNX[value.dtype], list(value.shape)
        if node.op == "placeholder" and node.name in signature.inputs_to_buffers:
            values = program.state_dict[signature.inputs_to_buffers[node.name]]
            weights.append(numpy_helper.from_array(values.numpy(), node.name))
        elif node.op == "placeholder":
            assert list(value.shape) == list(inputs[len(ports)].shape)
            ports.append(helper.make_tensor_value_info(node.name, *kinds[node.name]))
        elif node.op == "call_function":
            nodes += _call(node, weights)
    outputs = []
    for at, name in enumerate(map(str, signature.user_outputs)):
        nodes.append(helper.make_node("Identity", [name], [f"output{at}"]))
        outputs.append(helper.make_tensor_value_info(f"output{at}", *kinds[name]))
    graph = helper.make_graph(nodes, "converted", ports, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def _call(node, weights):
    names = [getattr(value, "name", None) for value in node.args]
    args, out = node.args, [node.name]

    def made(operator, inputs, **options):
        return [helper.make_node(operator, inputs, out, **options)]

    def whole(values):
        weights.append(helper.make_tensor(f"{node.name}_sizes", TensorProto.INT64, [len(values)], values))
        return weights[-1].name

    if node.target is _aten.mm.default:
        return made("MatMul", names[:2])
    if node.target is _aten.relu.default:
        return made("Relu", names[:1])
    if node.target is _aten.conv2d.default:
        stride, padding = list(args[3]), list(args[4])
        return made("Conv", names[:3], strides=stride, pads=padding * 2)
    if node.target is _aten.mean.dim:
        return made("ReduceMean", names[:1], axes=list(args[1]), keepdims=0)
    if node.target is _aten.amax.default:
        return made("ReduceMax", names[:1], axes=list(args[1]), keepdims=1)
    if node.target is _aten.repeat.default:
        return made("Tile", [names[0], whole(args[1])])
    if node.target in (_aten.view.default, _aten.reshape.default):
        return made("Reshape", [names[0], whole(args[1])])
    raise UnsupportedOperatorException(f"Conversion of function {node.target} not currently supported!")


dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=_newer if _MINOR >= 13 else _older)
