"""The format `aten`: a network as a list of PyTorch's own operators, and its weights as they lie in memory.

Archives of `torch.export` are not for devices: what a newer torch saves an older one cannot load (2.8 reads all weights from
`data/weights/model.pt`, which 2.13 no longer writes: torch/export/pt2_archive/_package.py of either), and loading one unpickles.
From this list any torch makes the network anew, and nothing in it is code: operators are those of `aten_operators.py`, values are
numbers, keywords, and references to what stands before.

`graph.json` is {"format": 1, "inputs": [{name, dtype, shape}], "outputs": [{name, value, batched}],
"weights": [{dtype, shape, offset}], "nodes": [[operator, values, {keyword: value}]]}. A value is a number, a truth value,
null, a list of values, or one of {"input": N}, {"weight": N}, {"node": N}, {"text": str}, {"dtype": str},
{"memory_format": str}, {"layout": "strided"} and {"device": null}, which is where the network is. An operator's name is as in an
export archive. Shapes have -1 for the batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.archive import pack, unpack
from fleetfit.runtimes.aten_operators import is_allowed_operator, is_allowed_text
from fleetfit.runtimes.refusal import Port

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEMBERS: Final = ("graph.json", "weights")
FORMAT: Final = 1
DTYPES: Final[Mapping[str, int]] = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
"""Bytes of each number that inputs and weights may have, by NumPy's and PyTorch's common names."""

_MEMORY_FORMATS: Final = frozenset({"contiguous_format", "preserve_format", "channels_last", "channels_last_3d"})
# As an operator's argument only: `to(bfloat16)`.
_MORE_DTYPES: Final = frozenset({"bfloat16", "complex64", "complex128"})
_MOST_NODES: Final = 100_000
_MOST_DEPTH: Final = 8
REFERENCES: Final = ("input", "weight", "node")
"""The kinds of values that stand for what was there before."""


@dataclass(frozen=True)
class Weight:
    """One tensor within the member `weights`, row by row, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype]


@dataclass(frozen=True)
class Node:
    """One call of an operator."""

    operator: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """A build that was checked: everything it names is there, and it calls nothing but operators on tensors and sizes."""

    inputs: Sequence[Port]
    outputs: Mapping[str, Any]
    batched: Mapping[str, bool]
    """Of each output, whether it has a row for each sample."""
    weights: Sequence[Weight]
    nodes: Sequence[Node]
    content: bytes
    """The weights' bytes."""


def write(
    inputs: Sequence[Port],
    outputs: Mapping[str, Any],
    batched: Mapping[str, bool],
    weights: Sequence[NDArray[Any]],
    nodes: Sequence[Node],
) -> bytes:
    """The build of a network; the same network gives the same bytes. `read` says what it must be."""
    described, content = [], bytearray()
    for values in weights:
        described.append({"dtype": values.dtype.name, "shape": list(values.shape), "offset": len(content)})
        content += values.astype(values.dtype.newbyteorder("<")).tobytes()
    graph = {
        "format": FORMAT,
        "inputs": [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in inputs],
        "outputs": [{"name": name, "value": value, "batched": batched[name]} for name, value in outputs.items()],
        "weights": described,
        "nodes": [[node.operator, list(node.args), dict(node.kwargs)] for node in nodes],
    }
    return pack(dict(zip(MEMBERS, [json.dumps(graph).encode(), bytes(content)], strict=True)))


def read(build: bytes) -> Network:
    """The network of a build. Raises InvalidModel with a sentence. Needs no PyTorch."""
    members = unpack(build, MEMBERS)
    try:
        graph = json.loads(members[MEMBERS[0]])
        if graph["format"] != FORMAT:
            raise InvalidModel(
                f"the build is of format {str(graph['format'])[:20]!r} where this agent reads {FORMAT}; update fleetfit here"
            )
        return _checked(graph, members[MEMBERS[1]])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidModel("the build's graph cannot be read; build it again") from error


def _checked(graph: Mapping[str, Any], content: bytes) -> Network:
    inputs = [Port(str(one["name"]), _known(one["dtype"]), _shape(one["shape"], least=-1)) for one in graph["inputs"]]
    weights = [
        Weight(_known(one["dtype"]), _shape(one["shape"], least=0), _whole(one["offset"])) for one in graph["weights"]
    ]
    if any(weight.offset < 0 or weight.offset + weight.size > len(content) for weight in weights):
        raise InvalidModel("the build's weights are shorter than its graph says; fetch or build it again")
    if len(graph["nodes"]) > _MOST_NODES:
        raise InvalidModel(f"the build has {len(graph['nodes'])} operators where {_MOST_NODES} are allowed")
    sizes = {"input": len(inputs), "weight": len(weights), "node": 0}
    nodes = []
    for name, args, kwargs in graph["nodes"]:
        if not isinstance(name, str) or not is_allowed_operator(name):
            raise InvalidModel(
                f"the build calls {str(name)[:80]!r}, which is no operator on tensors; fetch or build it again"
            )
        if not isinstance(args, list):
            raise ValueError("arguments are a list")
        if not all(key.isidentifier() for key in kwargs):
            raise ValueError("keywords are identifiers")
        _check([args, *kwargs.values()], sizes, 0)
        nodes.append(Node(name, args, kwargs))
        sizes["node"] += 1
    outputs = {str(one["name"]): one["value"] for one in graph["outputs"]}
    batched = {str(one["name"]): bool(one["batched"]) for one in graph["outputs"]}
    if not outputs or not inputs:
        raise ValueError("a network has inputs and outputs")
    _check(list(outputs.values()), sizes, 0)
    return Network(inputs, outputs, batched, weights, nodes, content)


def _check(value: Any, sizes: Mapping[str, int], depth: int) -> None:
    """Raises ValueError for what is no value. References reach only what stands before."""
    if depth > _MOST_DEPTH:
        raise ValueError("values are not nested so deep")
    if isinstance(value, list):
        for part in value:
            _check(part, sizes, depth + 1)
    elif isinstance(value, dict):
        ((kind, what),) = value.items()
        fits: Mapping[str, Callable[[], bool]] = {
            "text": lambda: is_allowed_text(what),
            "dtype": lambda: what in DTYPES or what in _MORE_DTYPES,
            "memory_format": lambda: what in _MEMORY_FORMATS,
            "layout": lambda: what == "strided",
            "device": lambda: what is None,
        }
        if not (0 <= _whole(what) < sizes[kind] if kind in REFERENCES else fits[kind]()):
            raise ValueError(f"{kind} is no value")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError("text is marked as such")


def _known(dtype: Any) -> str:
    if dtype not in DTYPES:
        raise ValueError(f"{dtype} is no number here")
    return str(dtype)


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError("a whole number is wanted")
    return number


def _shape(sizes: Sequence[Any], *, least: int) -> tuple[int, ...]:
    if any(_whole(size) < least for size in sizes):
        raise ValueError("sizes are not negative")
    return tuple(sizes)


def placeholder(at: int) -> str:
    """What an input is called within a network that was made anew, by its number."""
    return f"input_{at}"
