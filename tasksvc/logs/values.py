"""Values of any kind as bounded, plain ones: text, numbers, lists and dictionaries of exact types.

The JSON encoder sees nothing else: orjson crashes the process on objects whose attributes raise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date, datetime, time
from itertools import islice
from typing import Any

TEXT_LENGTH = 8192
"""Characters of one text that are kept."""

_KEY_LENGTH = 200
_DEPTH = 8
_ITEMS = 1000
_LARGE = 2**63
_INTEGER_BITS = 4096  # Python refuses to write integers of more than 4,300 digits


class Room:
    """What all values of one line may take together."""

    __slots__ = ("characters", "items")

    def __init__(self, characters: int) -> None:
        self.characters = characters
        self.items = _ITEMS

    def text(self, value: str, length: int = TEXT_LENGTH) -> str:
        """The text, or its beginning and its length."""
        given = len(value)
        if given <= length and given <= self.characters:
            self.characters -= given
            return value
        kept = min(length, self.characters)
        self.characters -= kept
        return f"{value[:kept]}… ({len(value)} characters)"


def plain(value: Any, room: Room, depth: int = 0) -> Any:
    """The value as JSON can have it. Raises nothing, whatever the value does when it is asked."""
    kind = type(value)
    if kind is str:
        return room.text(value)
    if kind is bool or value is None or (kind is int and -_LARGE < value < _LARGE):
        return value
    try:
        return _plain(value, kind, room, depth)
    except BaseException as error:
        return f"<{type_name(value)} that can't be shown: {type_name(error)}>"


def type_name(value: Any) -> str:
    """The name of the value's type; a metaclass may refuse it."""
    try:
        return str.__str__(type(value).__name__)[:_KEY_LENGTH]
    except BaseException:
        return "object"


def text_of(value: Any) -> str:
    """`str(value)` as an exact string. Raises whatever the value raises."""
    return str.__str__(str(value))


def _plain(value: Any, kind: type, room: Room, depth: int) -> Any:
    # Methods of the base types: a subclass may have others under the same names.
    if issubclass(kind, int):
        number = int.__int__(value)
        bits = number.bit_length()
        return number if bits <= _INTEGER_BITS else f"<integer of {bits} bits>"
    if issubclass(kind, float):
        real = float.__pos__(value)
        return real if math.isfinite(real) else str(real)
    if issubclass(kind, str):
        return room.text(str.__str__(value))
    if issubclass(kind, (dict, list, tuple, set, frozenset)):
        if depth >= _DEPTH:
            return f"<{type_name(value)}, nested too deeply>"
        if issubclass(kind, dict):
            return _dictionary(value, room, depth)
        base: Any = next(each for each in (list, tuple, set, frozenset) if issubclass(kind, each))
        return _list(base.__iter__(value), base.__len__(value), room, depth)
    if issubclass(kind, (bytes, bytearray, memoryview)):
        return room.text(repr(bytes(value[:TEXT_LENGTH])))
    if issubclass(kind, (datetime, date, time)):
        return room.text(text_of(value.isoformat()))
    if issubclass(kind, BaseException):
        return room.text(str.__str__(repr(value)))
    return room.text(text_of(value))


def _dictionary(value: dict[Any, Any], room: Room, depth: int) -> dict[str, Any]:
    items = {}
    for key, item in islice(dict.items(value), room.items):
        room.items -= 1
        items[name_of(key, room)] = plain(item, room, depth + 1)
    if len(items) < (length := dict.__len__(value)) and room.items <= 0:
        items["…"] = f"{length} in all"
    return items


def _list(values: Iterable[Any], length: int, room: Room, depth: int) -> list[Any]:
    items = []
    for item in islice(values, room.items):
        room.items -= 1
        items.append(plain(item, room, depth + 1))
    if len(items) < length:
        items.append(f"… ({length} in all)")
    return items


def name_of(key: Any, room: Room) -> str:
    """The key of a dictionary as text."""
    if type(key) is str:
        return room.text(key, _KEY_LENGTH)
    try:
        return room.text(text_of(key), _KEY_LENGTH)
    except BaseException:
        return f"<{type_name(key)}>"
