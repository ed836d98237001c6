"""Text from devices, fit to be shown: a hostile one could otherwise send a terminal commands among its words."""

from __future__ import annotations

from collections.abc import MutableMapping

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_KEPT = frozenset("\n\t")


def printable(text: str) -> str:
    """`text` with every control character (escape among them) replaced by U+FFFD; line ends and tabs stay."""
    return "".join(c if c in _KEPT or c.isprintable() or c == "\u00a0" else "\ufffd" for c in text)


def make_printable(message: Message) -> None:
    """Clean all text in a message, at any depth, in place."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            if isinstance(value, str):
                setattr(message, field.name, printable(value))
            else:
                value[:] = [printable(one) for one in value]
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                _clean_map(value)
            else:
                for one in (value,) if isinstance(value, Message) else value:
                    make_printable(one)


def _clean_map(entries: MutableMapping[str, str]) -> None:
    """Maps of the protocol hold text by text."""
    cleaned = {printable(key): printable(value) for key, value in entries.items()}
    entries.clear()
    entries.update(cleaned)
