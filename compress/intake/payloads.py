"""Check of the lists of weights and constants in an export archive. Needs only the standard library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from fleetfit.core.errors import InvalidModel

# Bytes of one element by the archive's number for a dtype; sub-byte, quantized and complex ones are not taken.
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}
# A ModuleDict's keys are free text; nothing that could end a quoted name is let through.
_NAME = re.compile(r"[A-Za-z0-9_./: +-]{1,300}")
_STRIDED = 7
_MAX_TENSOR_BYTES = 4 << 30
_MAX_TOTAL_BYTES = 8 << 30


def _refuse(problem: str) -> NoReturn:
    raise InvalidModel(
        f"The model file {problem}; make it again with fleetfit.export(model, sample_inputs, 'model.pt2') from a model whose "
        "weights are plain tensors on the CPU."
    )


def check_payloads(config: dict[str, Any], folder: str, sizes: Mapping[str, int]) -> None:
    """Check that every weight is plain numbers that lie within its file.

    Args:
        config: `model_weights_config.json` or `model_constants_config.json`.
        folder: Where its files lie in the archive.
        sizes: Bytes of each entry of the archive.

    Raises:
        InvalidModel: Something is pickled, on another device, or larger than what is there.
    """
    entries = config.get("config")
    if not isinstance(entries, dict) or set(config) != {"config"}:
        _refuse("has an unreadable list of weights")
    total = 0
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not _NAME.fullmatch(name):
            _refuse(f"has an unreadable entry for the weight {name[:60]!r}")
        if entry.get("use_pickle") is not False:
            _refuse(f"holds {name[:60]!r} as a pickle, which could run code")
        file = entry.get("path_name")
        if (
            not isinstance(file, str)
            or not re.fullmatch(r"(weight|tensor)_[0-9]{1,6}", file)
            or folder + file not in sizes
        ):
            _refuse(f"has no plain numbers for {name[:60]!r}")
        total += _check_tensor(name[:60], entry.get("tensor_meta"), sizes[folder + file])
    if total > _MAX_TOTAL_BYTES:
        _refuse(f"has weights of {total} bytes, which is more than fits here")


def _integer(value: Any, name: str) -> int:
    number = value.get("as_int") if isinstance(value, dict) and set(value) == {"as_int"} else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 48:
        _refuse(f"has a weight {name!r} of no fixed size")
    return number


def _check_tensor(name: str, meta: Any, file_bytes: int) -> int:
    if (
        not isinstance(meta, dict)
        or not isinstance(meta.get("sizes"), list)
        or not isinstance(meta.get("strides"), list)
    ):
        _refuse(f"does not say how large the weight {name!r} is")
    item = ITEM_BYTES.get(meta["dtype"]) if isinstance(meta.get("dtype"), int) else None
    device = meta.get("device")
    if item is None or meta.get("layout") != _STRIDED:
        _refuse(f"has a weight {name!r} of a quantized, complex, sparse or unknown type")
    if not isinstance(device, dict) or device.get("type") != "cpu":
        _refuse(f"has a weight {name!r} on another device; move the model with model.cpu() first")
    sizes = [_integer(size, name) for size in meta["sizes"]]
    strides = [_integer(stride, name) for stride in meta["strides"]]
    offset = _integer(meta.get("storage_offset"), name)
    if len(sizes) != len(strides) or len(sizes) > 8:
        _refuse(f"has a weight {name!r} whose shape makes no sense")
    count, last = 1, offset
    for size, stride in zip(sizes, strides, strict=True):
        count *= size
        last += max(size - 1, 0) * stride
    logical = count * item
    if logical > _MAX_TENSOR_BYTES:
        _refuse(f"has a weight {name!r} of {logical} bytes, which is too large")
    if file_bytes % item or (count and (last + 1) * item > file_bytes):
        _refuse(f"has a weight {name!r} that needs more bytes than its file holds")
    return logical
