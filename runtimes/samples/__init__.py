"""Small builds that come with fleetfit: to check the contract of runtimes with, and a network to measure where no model is.

The files are made by tests/runtimes/builds.py; a test compares.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleetfit.runtimes import aten, ncnn, openvino
from fleetfit.runtimes.archive import pack
from fleetfit.runtimes.refusal import Port

FOLDER: Final = Path(__file__).parent
WEIGHTS: NDArray[np.float32] = np.arange(12, dtype=np.float32).reshape(4, 3) - 5
"""Of the build `good`: `scores` = x @ WEIGHTS, `positive` = max(scores, 0)."""
HUNGRY_FLOATS: Final = 1 << 29
"""So many numbers per sample `hungry` needs: 2 GiB."""
NETWORK_SHAPE: Final = (1, 28, 28)
"""Of one sample of the network; its output `scores` has ten numbers."""
NETWORK_OUTPUT: Final[Sequence[Sequence[float]]] = json.loads((FOLDER / "network.json").read_text())
"""`scores` for `network_inputs(4)`, computed in float64."""


@dataclass(frozen=True)
class Samples:
    """Builds of one format. `good` takes `x` of (N, 4) and gives `scores` and `positive` of (N, 3)."""

    good: Callable[[], bytes]
    hungry: Callable[[], bytes]
    """Takes the same, and needs more memory than a child may have."""
    network: Callable[[], bytes]
    """Three convolutions, a mean over the picture and a product: `x` of (N, 1, 28, 28) to `scores` of (N, 10)."""
    external: Callable[[], bytes] | None = None
    """A build whose weights lie in `weights.bin`, where the format knows such a thing."""


def network_inputs(count: int) -> NDArray[np.float32]:
    """`count` samples for the network, (count, 1, 28, 28), the same everywhere."""
    return np.sin(np.arange(count * 784, dtype=np.float64) * 0.7).reshape(count, *NETWORK_SHAPE).astype(np.float32)


def samples_of(formats: Sequence[str]) -> Samples | None:
    """Those of the first format that has some."""
    return next((SAMPLES[format] for format in formats if format in SAMPLES), None)


def as_openvino(build: bytes) -> bytes:
    """An ONNX build as OpenVINO's intermediate representation. Needs OpenVINO."""
    library = openvino.import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        library.save_model(library.Core().read_model(model=build), f"{folder}/model.xml", compress_to_fp16=False)
        return pack({name: Path(folder, name).read_bytes() for name in openvino.MEMBERS})


def ncnn_build(
    layers: Sequence[str],
    blobs: int,
    weights: bytes,
    outputs: Mapping[str, int],
    *,
    inputs: Sequence[int] = (4,),
) -> bytes:
    """An archive for ncnn with the input `x` of (N, *inputs) and outputs of (N, columns), in the order of `out0`, `out1`, ..."""

    def port(blob: str, name: str, shape: Sequence[int]) -> dict[str, object]:
        return {"blob": blob, "name": name, "dtype": "float32", "shape": [-1, *shape], "batched": True}

    ports = {
        "inputs": [port("in0", "x", inputs)],
        "outputs": [port(f"out{at}", name, [columns]) for at, (name, columns) in enumerate(outputs.items())],
    }
    param = "\n".join(["7767517", f"{len(layers)} {blobs}", *layers, ""])
    contents = [param.encode(), weights, json.dumps(ports).encode()]
    return pack(dict(zip(ncnn.MEMBERS, contents, strict=True)))


def ncnn_affine() -> bytes:
    """The build `good`, for ncnn."""
    layers = [
        "Input in 0 1 in0",
        "InnerProduct product 1 1 in0 product 0=3 1=0 2=12",
        "Split split 1 2 product out0 copy",
        "ReLU relu 1 1 copy out1",
    ]
    # Four zero bytes say that floats follow; one row for each output.
    return ncnn_build(layers, 5, bytes(4) + WEIGHTS.T.tobytes(), {"scores": 3, "positive": 3})


def ncnn_hungry() -> bytes:
    """The build `hungry`, for ncnn."""
    layers = [
        "Input in 0 1 in0",
        f"Tile wide 1 1 in0 wide 0=0 1={HUNGRY_FLOATS // 4}",
        "Reduction most 1 1 wide out0 0=4 1=1",
    ]
    return ncnn_build(layers, 3, b"", {"scores": 1})


def aten_build(
    weights: Sequence[NDArray[np.float32]],
    nodes: Sequence[aten.Node],
    outputs: Mapping[str, int],
    *,
    inputs: Sequence[int],
) -> bytes:
    """A list of operators with the input `x` of (N, *inputs); outputs are the results of calls, by number."""
    values = {name: {"node": at} for name, at in outputs.items()}
    return aten.write([Port("x", "float32", (-1, *inputs))], values, dict.fromkeys(outputs, True), weights, nodes)


def aten_affine() -> bytes:
    """The build `good`, of PyTorch's operators."""
    nodes = [
        aten.Node("torch.ops.aten.mm.default", [{"input": 0}, {"weight": 0}], {}),
        aten.Node("torch.ops.aten.relu.default", [{"node": 0}], {}),
    ]
    return aten_build([WEIGHTS], nodes, {"scores": 0, "positive": 1}, inputs=[4])


def aten_hungry() -> bytes:
    """The build `hungry`, of PyTorch's operators."""
    nodes = [
        aten.Node("torch.ops.aten.repeat.default", [{"input": 0}, [1, HUNGRY_FLOATS // 4]], {}),
        aten.Node("torch.ops.aten.amax.default", [{"node": 0}, [1], True], {}),
    ]
    return aten_build([], nodes, {"scores": 1}, inputs=[4])


def _file(name: str) -> Callable[[], bytes]:
    return (FOLDER / name).read_bytes


SAMPLES: Final[Mapping[str, Samples]] = {
    "onnx": Samples(_file("good.onnx"), _file("hungry.onnx"), _file("network.onnx"), _file("external.onnx")),
    "openvino": Samples(
        lambda: as_openvino(_file("good.onnx")()),
        # OpenVINO computes what it can before the inputs are there, and would do so to `hungry`.
        lambda: as_openvino(_file("repeated.onnx")()),
        lambda: as_openvino(_file("network.onnx")()),
    ),
    "aten": Samples(aten_affine, aten_hungry, _file("network.aten")),
    "ncnn": Samples(ncnn_affine, ncnn_hungry, _file("network.ncnn")),
}
"""By format."""
