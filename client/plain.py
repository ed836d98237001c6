"""Protocol messages as plain values, for `--json`.

Unlike protobuf's own JSON, numbers stay numbers (it writes 64-bit ones as text) and enum values lose their prefix:
`DEVICE_STATE_ONLINE` reads `online`. Fields that are explicitly optional and unset are null.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message


def to_plain(message: Message) -> dict[str, Any]:
    """The message as a dictionary with all its fields, by the names that the protocol has for them."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def enum_word(kind: EnumDescriptor, number: int) -> str:
    """An enum's value as people read it; a value that this version does not know yet is its number."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    names = [one.name for one in kind.values]
    prefix = next((n.removesuffix("UNSPECIFIED") for n in names if n.endswith("_UNSPECIFIED")), "")
    return value.name.removeprefix(prefix).lower()


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_single(field, one) for one in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    return value.hex() if isinstance(value, bytes) else value
