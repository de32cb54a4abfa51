"""Bounded descriptions of exceptions, without the values of variables: those hold contents."""

from __future__ import annotations

import linecache
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from tasksvc.logs.values import text_of, type_name

_ERRORS = 10
"""Of one line: an exception, what led to it, and the members of its groups."""
_FRAMES = 50
_NOTES = 5
_MESSAGE_LENGTH = 2000
_NOTE_LENGTH = 8192
_NAME_LENGTH = 300


class Frame(NamedTuple):
    """A call that was going on."""

    filename: str
    lineno: int
    name: str


@dataclass(slots=True)
class Described:
    """An exception, without the exception."""

    name: str
    module: str
    message: str
    is_cause: bool
    """It was named as the cause; otherwise it was only being handled."""
    frames: list[Frame] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    members: list[list[Described]] = field(default_factory=list)
    """Of an exception group, each with what led to it."""

    def as_dict(self) -> dict[str, Any]:
        """As the log file has it."""
        return {
            "exc_type": self.name,
            "exc_value": self.message,
            "is_cause": self.is_cause,
            "frames": [frame._asdict() for frame in self.frames],
            **({"exc_notes": self.notes} if self.notes else {}),
            **(
                {"exceptions": [[each.as_dict() for each in member] for member in self.members]}
                if self.members
                else {}
            ),
        }


def describe(error: BaseException) -> list[Described]:
    """The error, and after it what led to it. Raises nothing."""
    try:
        return _chain(error, [_ERRORS], set())
    except BaseException as another:
        message = f"It can't be described: {type_name(another)}"
        return [Described(type_name(error), "", message, False)]


def shortened(chain: list[Described]) -> list[Described]:
    """The first error alone, without its frames."""
    first = chain[0]
    return [Described(first.name, first.module, first.message[:500], first.is_cause)]


def as_text(chain: list[Described]) -> list[str]:
    """Lines as Python prints them: what led to it comes first. They may have control characters."""
    lines: list[str] = []
    for number, error in reversed(list(enumerate(chain))):
        lines.extend(_text(error))
        if number > 0:
            lines.append(
                "It is the direct cause of the next:" if error.is_cause else "Then, meanwhile:"
            )
    return lines


def _text(error: Described) -> list[str]:
    lines = ["Traceback (most recent call last):"] if error.frames else []
    for filename, lineno, name in error.frames:
        lines.append(f'  File "{filename}", line {lineno}, in {name}')
        if source := linecache.getline(filename, lineno).strip():
            lines.append(f"    {source[:_NAME_LENGTH]}")
    is_named = error.module in ("", "builtins")
    said = f": {error.message}" if error.message else ""
    first, *others = f"{'' if is_named else error.module + '.'}{error.name}{said}".split("\n")
    lines.append(first)
    lines.extend(others)
    for note in error.notes:
        lines.extend(note.split("\n"))
    for number, member in enumerate(error.members, 1):
        lines.append(f"  Its part {number}:")
        lines.extend(f"    {line}" for line in as_text(member))
    return lines


def _chain(error: BaseException, room: list[int], seen: set[int]) -> list[Described]:
    chain: list[Described] = []
    is_cause = False
    following: BaseException | None = error
    while following is not None and id(following) not in seen and room[0] > 0:
        room[0] -= 1
        seen.add(id(following))
        chain.append(_described(following, is_cause, room, seen))
        if following.__cause__ is not None:
            is_cause, following = True, following.__cause__
        elif following.__suppress_context__:
            break
        else:
            is_cause, following = False, following.__context__
    return chain


def _described(error: BaseException, is_cause: bool, room: list[int], seen: set[int]) -> Described:
    try:
        message = _cut(text_of(error), _MESSAGE_LENGTH)
    except BaseException as another:
        message = f"<its text can't be had: {type_name(another)}>"
    described = Described(type_name(error), _module(error), message, is_cause)
    described.frames = _frames(error.__traceback__)
    notes = getattr(error, "__notes__", None)
    if type(notes) is list:
        described.notes = [_cut(note, _NOTE_LENGTH) for note in notes[:_NOTES] if type(note) is str]
    if isinstance(error, BaseExceptionGroup):
        described.members = [
            chain for each in error.exceptions[:_ERRORS] if (chain := _chain(each, room, seen))
        ]
    return described


def _frames(traceback: TracebackType | None) -> list[Frame]:
    """The last of them: there is what was raised."""
    frames: deque[Frame] = deque(maxlen=_FRAMES)
    while traceback is not None:
        code = traceback.tb_frame.f_code
        # A traceback in the making has no line for code that has none.
        lineno = traceback.tb_lineno or code.co_firstlineno
        frames.append(
            Frame(_cut(code.co_filename, _NAME_LENGTH), lineno, _cut(code.co_name, _NAME_LENGTH))
        )
        traceback = traceback.tb_next
    return list(frames)


def _module(error: BaseException) -> str:
    module = getattr(type(error), "__module__", "")
    return _cut(module, _NAME_LENGTH) if type(module) is str else ""


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"
