"""Whether a model that is being compressed can still meet the limits it is made for. Where it cannot, going on is waste.

Only what no later step can save counts:

- *Size.* A build holds the weights of its convolutions, products and recurrent layers, so their bytes, times the least share
  that the steps to come leave (`Pass.least_share`: a quarter with int8; nothing is known of a step that prunes), are a size
  that no build falls below. They are counted in the file that would be built now.
- *Loss.* Where no step to come may recover (trains, re-estimates, or is of a kind that nothing is known of), the loss against
  the original on the validation split, paired sample by sample, stays: quantization is not there to repair it. All of its 95 %
  interval must lie beyond the limit. A job judges by the better of the original and the retrained original, so what it
  finds is never less than this.

Limits on latency and memory are the device's to judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx

from fleetfit.compress.passes.base import Needs, Pass, Stage
from fleetfit.compress.tasks import Limits
from fleetfit.core.errors import OutOfReach
from fleetfit.core.figures import number, size
from fleetfit.core.metrics import metric_info
from fleetfit.core.statistics import Interval

_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
_FLOATS: Final = {
    onnx.TensorProto.FLOAT: 4,
    # Shares are of 32-bit floats: of wider ones they would leave too much.
    onnx.TensorProto.DOUBLE: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
}


@dataclass(frozen=True)
class Loss:
    """What the metric has lost against the original so far, in its units (positive: worse), and the original's value."""

    metric: str
    drop: Interval
    original: float


def check_reach(
    limits: Sequence[Limits],
    done: str,
    later: Sequence[Pass],
    loss: Loss | None,
    weight_bytes: int,
    build: Callable[[], bytes],
) -> None:
    """Raise OutOfReach where none of `limits` can be met any more, with a reason for each.

    Args:
        limits: Of those for whom the model is made; one that can be met is enough to go on.
        done: What was done last, as in "after distill".
        later: The steps to come.
        loss: None where nothing is judged.
        weight_bytes: About what the weights take as they are; nothing is built where even these would fit.
        build: Makes the ONNX file of the model as it is.
    """
    share = math.prod(step.least_share() for step in later)
    least: int | None = None
    if later and any(one.max_size_bytes is not None and weight_bytes * share > one.max_size_bytes for one in limits):
        least = least_bytes(build(), share)
    lasting = None if any(map(_may_recover, later)) else loss
    reasons = [_too_large(one, least) or _too_much_lost(one, lasting) for one in limits]
    if limits and all(reasons):
        told = [f"stopped {done}: {reason}" for reason in reasons]
        raise OutOfReach(told[0], reasons=told)


def least_bytes(content: bytes, share: float) -> int:
    """Bytes that an ONNX file has at least once its float weights take `share` of what they take as 32-bit floats."""
    graph: Any = onnx.load_model_from_string(content).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    # Others, such as a table that is cut to a constant part, may be folded away when the file is prepared.
    read = {
        name
        for node in graph.node
        if node.op_type in _WEIGHTED and node.input[0] not in stored
        for name in node.input[1:]
        if name in stored
    }
    return sum(
        math.floor(math.prod(stored[name].dims) * _FLOATS[stored[name].data_type] * share)
        for name in read
        if len(stored[name].dims) > 1 and stored[name].data_type in _FLOATS
    )


def _may_recover(step: Pass) -> bool:
    return step.stage in (Stage.RECOVER, Stage.OTHER) or Needs.TRAINING in step.wants()


def _too_large(limits: Limits, least: int | None) -> str:
    if limits.max_size_bytes is None or least is None or least <= limits.max_size_bytes:
        return ""
    return (
        f"with all that follows its build would still have at least {size(least)}, where at most "
        f"{size(limits.max_size_bytes)} is allowed"
    )


def _too_much_lost(limits: Limits, loss: Loss | None) -> str:
    if loss is None:
        return ""
    drop, allowed = loss.drop, limits.most_lost(loss.original)
    if allowed is None or not drop.low > allowed:
        return ""
    info = metric_info(loss.metric)
    unit = f" {info.unit}" if info.unit else ""
    return (
        f"it is {number(drop.value)}{unit} ({number(drop.low)} to {number(drop.high)}) worse than the original in "
        f"{loss.metric}, where {number(allowed)} is allowed, and no recovery step follows"
    )
